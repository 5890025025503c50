"""Every quality and metric against CompressAI: the same tables, bytes, values and gradients."""

from __future__ import annotations

import pytest
from oracles.compare_compressai import compare
from oracles.compressai_models import CLASSES

pytestmark = pytest.mark.compressai


@pytest.mark.parametrize("metric", ["mse", "ms-ssim"])
@pytest.mark.parametrize("quality", range(1, 9))
@pytest.mark.parametrize("name", CLASSES)
def test_no_difference(name: str, quality: int, metric: str) -> None:
    difference = compare(name, quality, metric)
    assert (difference.tables, difference.bytes) == (0, 0)
    assert difference.values < 1e-6
    assert difference.gradients < 1e-5
