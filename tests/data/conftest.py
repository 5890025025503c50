"""Files of both kinds, written once for all tests of the data sets."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from oracles.dataset_files import Case, Files, Streams
from torch import Tensor

from cdzoo import Latent
from cdzoo.codecs import Codec


@pytest.fixture(scope="session")
def streams(
    make_codec: Callable[..., Codec], make_images: Callable[..., Tensor], tmp_path_factory: pytest.TempPathFactory
) -> Streams:
    """Streams in a folder and in shards."""
    codec, other = (make_codec("bmshj2018_hyperprior", seed=seed) for seed in (0, 1))
    return Streams(tmp_path_factory.mktemp("streams"), codec, other, make_images)


@pytest.fixture(scope="session")
def files(tmp_path_factory: pytest.TempPathFactory) -> Files:
    """JPEG files in a folder and in shards."""
    return Files(tmp_path_factory.mktemp("files"))


@pytest.fixture(params=["streams", "files"])
def case(request: pytest.FixtureRequest) -> Case:
    """Both kinds."""
    found: Any = request.getfixturevalue(request.param)
    assert isinstance(found, Case)
    return found


@pytest.fixture
def codec(streams: Streams) -> Codec:
    """The codec of the streams."""
    return streams.codec


@pytest.fixture
def written(streams: Streams) -> tuple[Path, dict[str, Latent]]:
    """The folder of streams, and the latents in it by name."""
    return streams.root, streams.samples


@pytest.fixture
def shards(streams: Streams) -> tuple[Path, dict[str, Latent]]:
    """The folder of shards, and the latents in them by name."""
    return streams.shard_folder, streams.members
