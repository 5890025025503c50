"""Image columns of Hugging Face datasets, in memory: the same values as from the files themselves."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from oracles.equality import same
from oracles.jpeg_files import encode, picture

import cdzoo
from cdzoo.codecs import Codec, read_header, read_jpeg
from cdzoo.errors import JPEGError
from cdzoo.images import decode_image, read_image
from cdzoo.interop.datasets import Compress, ReadCoefficients, ReadLatents, collate_rows
from cdzoo.transforms import CoefficientTransform, LatentTransform
from cdzoo.types import Latent

FILES = [encode(picture(48, 40, seed=seed)) for seed in range(3)]


@pytest.fixture(scope="module")
def hf() -> Any:
    """The library, without a network and without progress bars."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import datasets
    datasets.disable_progress_bars()
    return datasets


@pytest.fixture
def rows(hf: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Two files in memory and one on disk, with labels."""
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    (tmp_path / "2.jpg").write_bytes(FILES[2])
    images = [{"bytes": FILES[0], "path": None}, {"bytes": FILES[1], "path": "1.jpg"}]
    images.append({"bytes": None, "path": str(tmp_path / "2.jpg")})
    features = hf.Features({"image": hf.Image(decode=False), "label": hf.ClassLabel(names=["a", "b"])})
    return hf.Dataset.from_dict({"image": images, "label": [0, 1, 0]}, features=features)


@pytest.fixture(scope="module")
def codec(make_codec: Callable[..., Codec]) -> Codec:
    return make_codec("torfason2018", N=8, M=8)


def test_coefficients_of_rows_batches_and_loaders(rows: Any) -> None:
    dataset = rows.with_transform(ReadCoefficients("image"))
    for i, data in enumerate(FILES):
        assert same(dataset[i]["image"], read_jpeg(data))
    batch = dataset[:2]
    assert batch["label"] == [0, 1]
    assert len(batch["image"]) == 2
    (loaded,) = torch.utils.data.DataLoader(dataset, batch_size=3, collate_fn=collate_rows)
    assert same(loaded["image"], read_jpeg(FILES))
    assert loaded["label"].tolist() == [0, 1, 0]


def test_coefficients_with_a_transform_reach_a_network(rows: Any) -> None:
    transform = CoefficientTransform(shorter_side=20)
    dataset = rows.with_transform(ReadCoefficients(transform=transform))
    assert dataset[0]["image"].image_size == (20, 24)
    batch = collate_rows([dataset[i] for i in range(3)])
    model = cdzoo.models.jpeg_resnet_small(num_classes=2, width=0.5).eval()
    with torch.no_grad():
        torch.testing.assert_close(model(batch["image"]), model(transform(read_jpeg(FILES))))


def test_latents_of_images(rows: Any, codec: Codec) -> None:
    dataset = rows.with_transform(ReadLatents(codec))
    for i, data in enumerate(FILES):
        latent, expected = dataset[i]["image"], codec.encode(decode_image(data))
        assert torch.equal(latent.y_hat, expected.y_hat)
        assert latent.image_size == (40, 48)
    batch = collate_rows([dataset[i] for i in range(3)])
    assert isinstance(batch["image"], Latent)
    assert batch["image"].y_hat.shape == (3, 8, 5, 6)


def test_streams_are_written_once_and_read_back(rows: Any, codec: Codec) -> None:
    streams = rows.map(Compress(codec, "image"), batched=True, batch_size=2, remove_columns="image")
    assert set(streams.column_names) == {"cdz", "label"}
    dataset = streams.with_transform(ReadLatents(codec, "cdz", transform=LatentTransform(mean=(1.0,) * 8)))
    for i, data in enumerate(FILES):
        x = decode_image(data)
        assert streams[i]["cdz"] == codec.compress(x)[0]
        assert read_header(streams[i]["cdz"]).image_size == (40, 48)
        assert torch.equal(dataset[i]["cdz"].y_hat, codec.encode(x).y_hat - 1)


def test_plain_columns_of_bytes_and_paths(hf: Any, tmp_path: Path) -> None:
    (tmp_path / "a.jpg").write_bytes(FILES[0])
    for cell in (FILES[0], str(tmp_path / "a.jpg")):
        dataset = hf.Dataset.from_dict({"file": [cell]}).with_transform(ReadCoefficients("file"))
        assert same(dataset[0]["file"], read_jpeg(FILES[0]))


def test_decoded_images_and_other_files_are_refused(hf: Any, rows: Any, codec: Codec) -> None:
    decoded = rows.cast_column("image", hf.Image())
    for transform in (ReadCoefficients(), ReadLatents(codec), Compress(codec)):
        with pytest.raises(TypeError, match=r"dataset\.cast_column\('image', datasets\.Image\(decode=False\)\)"):
            transform(decoded[:1])
    with pytest.raises(JPEGError):
        ReadCoefficients("file")({"file": [b"no image"]})
    with pytest.raises(ValueError, match="an image of 8 bytes: cannot identify image file"):
        ReadLatents(codec, "file")({"file": [b"no image"]})
    with pytest.raises(ValueError, match="an image of 0 bytes: cannot identify image file"):
        Compress(codec, "file")({"file": [b""]})
    with pytest.raises(ValueError, match="no rows"):
        collate_rows([])


def test_content_is_read_as_a_file_is(tmp_path: Path) -> None:
    (tmp_path / "a.jpg").write_bytes(FILES[0])
    assert torch.equal(decode_image(FILES[0]), read_image(tmp_path / "a.jpg"))
