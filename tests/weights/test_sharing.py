"""Tensors that two folders have in common are stored once, and come back as they were."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

import cdzoo
from cdzoo.errors import WeightsError
from cdzoo.weights.folder import CONFIG, TENSORS, WeightsFolder
from cdzoo.weights.sharing import share_tensors


@pytest.fixture
def folders(tmp_path: Path) -> tuple[Path, Path]:
    """A network with pixels and one with a DCT stem whose trunk is the same but for one bias."""
    torch.manual_seed(0)
    pixels = cdzoo.models.jpeg_efficientnet_lite0(stem="pixels", width=0.125, num_classes=5)
    dct = cdzoo.models.jpeg_efficientnet_lite0(width=0.125, num_classes=5)
    own = dct.state_dict()
    own |= {name: value for name, value in pixels.state_dict().items() if name in own and name != "fc.bias"}
    dct.load_state_dict(own)
    return tuple(cdzoo.save_pretrained(m, tmp_path / n, dtype=torch.float16) for m, n in ((pixels, "a"), (dct, "b")))


def test_shared_tensors_are_stored_once(folders: tuple[Path, Path]) -> None:
    pixels, dct = folders
    before, size = WeightsFolder.from_path(dct).tensors(), (dct / TENSORS).stat().st_size
    origin = cdzoo.from_pretrained(dct).origin
    names = share_tensors(dct, pixels)
    assert (dct / TENSORS).stat().st_size < size / 2
    assert set(names) == {name for name in before if not name.startswith("stem.")} - {"fc.bias"}
    after = WeightsFolder.from_path(dct).tensors()
    assert after.keys() == before.keys()
    assert all(torch.equal(after[name], before[name]) for name in before)
    loaded = cdzoo.from_pretrained(dct)
    assert loaded.origin.digest == origin.digest
    again = cdzoo.from_pretrained(cdzoo.save_pretrained(loaded, dct.parent / "whole" / "c"))  # complete in itself
    assert again.origin.digest == origin.digest


def test_what_is_shared_must_be_there_and_the_same(folders: tuple[Path, Path], tmp_path: Path) -> None:
    pixels, dct = folders
    share_tensors(dct, pixels)
    elsewhere = tmp_path / "elsewhere" / "b"
    shutil.copytree(dct, elsewhere)
    with pytest.raises(WeightsError, match=r"the shared folder 'a'.*does not exist"):
        cdzoo.from_pretrained(elsewhere)
    with pytest.raises(ValueError, match="must be beside each other"):
        share_tensors(elsewhere, pixels)
    torch.manual_seed(1)
    cdzoo.save_pretrained(cdzoo.models.jpeg_efficientnet_lite0(stem="pixels", width=0.125, num_classes=5), pixels)
    with pytest.raises(WeightsError, match="is of another version; fetch all these folders again"):
        cdzoo.from_pretrained(dct)


def test_a_third_folder_shares_with_each_of_two(folders: tuple[Path, Path]) -> None:
    pixels, dct = folders
    share_tensors(dct, pixels)
    third = pixels.parent / "c"
    loaded = cdzoo.from_pretrained(dct)
    loaded.fc.bias.data += 1
    cdzoo.save_pretrained(loaded, third, dtype=torch.float16)
    before = WeightsFolder.from_path(third).tensors()
    share_tensors(third, dct, pixels)
    of_dct, of_pixels = ({*entry["names"]} for entry in json.loads((third / CONFIG).read_text())["shares"])
    assert of_dct == {name for name in before if name.startswith("stem.")}  # what it stores itself
    assert of_pixels == before.keys() - of_dct - {"fc.bias"}
    assert load_file(third / TENSORS).keys() == {"fc.bias"}
    after = WeightsFolder.from_path(third).tensors()
    assert after.keys() == before.keys()
    assert all(torch.equal(after[name], before[name]) for name in before)


@pytest.mark.parametrize("folder", ["../a", "/tmp/a", "..", ""])
def test_only_folders_beside_are_named(folders: tuple[Path, Path], folder: str) -> None:
    pixels, dct = folders
    share_tensors(dct, pixels)
    config = json.loads((dct / CONFIG).read_text())
    config["shares"][0]["folder"] = folder
    (dct / CONFIG).write_text(json.dumps(config))
    with pytest.raises(WeightsError, match="the name of a folder beside this one"):
        cdzoo.from_pretrained(dct)
