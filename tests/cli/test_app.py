"""The demonstration for browsers, without a browser: its function, its page's contents, and its command."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import numpy as np
import pytest
import torch
from oracles.jpeg_files import encode, picture

import cdzoo
from cdzoo.app import MAX_FILES, Demo, table_html, view
from cdzoo.bulk.networks import packaged_names
from cdzoo.cli import main
from cdzoo.codecs.hyperprior import RATES
from cdzoo.demo import PHOTO
from cdzoo.images import png_bytes, read_image, reduced


@pytest.fixture(scope="module")
def demo() -> Demo:
    return Demo(max_side=160)


def test_a_photograph_agrees_with_the_parts_of_the_package(demo: Demo) -> None:
    data = PHOTO.read_bytes()
    result = demo(data)
    (expected,) = cdzoo.classify(PHOTO)
    assert [label.name for label in result.from_coefficients] == [label.name for label in expected.classes]
    assert result.from_latents
    assert result.image_size == expected.image_size
    assert result.num_bytes == len(data)
    assert result.coded_size == (107, 160)
    assert result.decoded.size == (160, 107)
    assert result.bpp == pytest.approx(8 * result.stream_bytes / (107 * 160))
    original = np.asarray(cdzoo.load_images(PHOTO)[0].permute(1, 2, 0).numpy()).mean((0, 1))
    assert np.abs(np.asarray(result.decoded).mean((0, 1)) / 255 - original).max() < 0.03
    assert len(result.seconds) == 6
    assert all(seconds > 0 for seconds in result.seconds.values())


def test_more_bits_give_a_better_picture(demo: Demo) -> None:
    results = [demo(PHOTO.read_bytes(), rate) for rate in range(len(demo.rates))]
    assert [r.bpp for r in results] == sorted(r.bpp for r in results)
    assert [r.psnr for r in results] == sorted(r.psnr for r in results)
    assert len({r.from_latents for r in results}) == len(RATES)  # a network for each rate
    for member, result in zip(RATES, results, strict=True):
        codec = member.build_codec()
        _, weights = packaged_names(codec.name, codec.fingerprint)
        model = cdzoo.compose(codec, cdzoo.models.latent_efficientnet_lite0(weights=weights).eval())
        with torch.no_grad():
            logits = model(reduced(cdzoo.load_images(PHOTO), 160))
        assert result.from_latents[0].number == logits.argmax()
    with pytest.raises(ValueError, match="rate=3"):
        demo(PHOTO.read_bytes(), 3)


def test_other_formats_and_bad_files(demo: Demo) -> None:
    assert demo(png_bytes(read_image(PHOTO))).from_coefficients[0].name == "bell cote"
    photo = PHOTO.read_bytes()
    for data in (b"", b"nothing", photo[:100]):
        with pytest.raises(ValueError, match=r"."):
            demo(data)
    with pytest.raises(ValueError, match="1000"):
        Demo(max_pixels=1000)(photo)


def test_a_damaged_file_is_marked(demo: Demo, tmp_path: Path) -> None:
    photo, half, cut = PHOTO.read_bytes(), tmp_path / "half.jpg", tmp_path / "cut.jpg"
    half.write_bytes(photo[: len(photo) // 2])
    [row] = demo.table([half])
    assert "(damaged: byte" in row[1]
    assert "half.jpg cannot be read" in view(demo, [str(half)], 1).message  # Pillow does not read it
    cut.write_bytes(photo[: len(photo) // 2] + photo[-2:])  # Pillow reads it, for it has an end
    found = view(demo, [str(cut)], 1)
    assert "**cut.jpg is damaged** and was read as far as possible: byte" in found.message
    assert found.decoded is not None


def test_contents_of_the_page(demo: Demo, tmp_path: Path) -> None:
    good, gray, bad = tmp_path / "palace.jpg", tmp_path / "gray.jpg", tmp_path / "broken.jpg"
    good.write_bytes(PHOTO.read_bytes())
    gray.write_bytes(encode(picture(64, 48, "L")))
    bad.write_bytes(b"nothing")
    assert view(demo, None, 1) == view(demo, [], 1)
    one = view(demo, [str(good)], 1)
    assert one.message == ""
    assert one.table is None
    assert one.from_coefficients is not None
    assert next(iter(one.from_coefficients)) == "bell cote"
    broken = view(demo, [str(bad)], 1)
    assert "**broken.jpg cannot be read**" in broken.message
    assert str(tmp_path) not in broken.message
    assert broken.decoded is None
    many = view(demo, [str(bad), str(good), str(gray)], 1)
    assert many.decoded is not None
    assert many.table is not None
    assert [row[0] for row in many.table] == ["broken.jpg", "palace.jpg", "gray.jpg"]
    assert many.table[1][1:4] == ["bell cote", many.table[1][2], "640x427"]
    assert many.table[2][3] == "64x48"
    assert many.table[0][2:] == ["", "", ""]
    assert "201 files" in view(demo, [str(good)] * (MAX_FILES + 1), 1).message


def test_names_of_files_are_text_in_tables() -> None:
    html = table_html([["<img src=x onerror=alert(1)>.jpg", "palace"]], ["file", "label"])
    assert "<img" not in html
    assert html.count("<tr>") == 2
    assert "<th>file</th>" in html


def test_the_command_names_the_extra(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    assert main(["demo", "--serve", "--size", "100"]) == 2
    assert "--serve shows the packaged networks" in capsys.readouterr().err
    if importlib.util.find_spec("gradio") is None:
        assert main(["demo", "--serve"]) == 1
        assert "pip install 'cdzoo[app]'" in capsys.readouterr().err
