"""Fixtures of the tests of JPEG."""

from __future__ import annotations

import pytest
from torch import Tensor

from cdzoo.jpeg import dct


@pytest.fixture
def no_idct(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(c: Tensor) -> Tensor:
        raise AssertionError("an inverse DCT ran")

    monkeypatch.setattr(dct, "idct2d", refuse)
