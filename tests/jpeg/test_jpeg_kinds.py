"""Every kind of file of the documentation's table, against the plain file and against libjpeg."""

from __future__ import annotations

import io
import struct
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from kinds_of_files import KINDS, READ, WARNED, Kind, make, plain_file, scan_end
from oracles.jpeg_files import encode, picture
from PIL import Image

from cdzoo.errors import JPEGError
from cdzoo.jpeg.files import JPEGWarning, read_jpeg, read_jpeg_header, write_jpeg
from cdzoo.types import JPEGCoefficients


def pixels(data: bytes) -> np.ndarray:
    with warnings.catch_warnings(action="ignore"):
        return np.asarray(Image.open(io.BytesIO(data)))


def assert_equal(ours: JPEGCoefficients, theirs: JPEGCoefficients) -> None:
    assert ours.sampling == theirs.sampling
    assert ours.image_size == theirs.image_size
    for one, other in zip((*ours.planes, ours.qtables), (*theirs.planes, theirs.qtables), strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.name)
def test_every_kind(kind: Kind) -> None:
    plain, data = plain_file(kind), make(kind)
    for strict, expected in ((True, kind.strict), (False, kind.lenient)):
        if expected not in (READ, WARNED):
            for _ in range(2):  # a header that is known changes nothing
                with pytest.raises(JPEGError, match=expected):
                    read_jpeg(data, strict=strict)
            continue
        with warnings.catch_warnings(record=True) as record:
            warnings.simplefilter("always")
            found = read_jpeg(data, strict=strict)
            again = read_jpeg([data, data], strict=strict)
        assert [type(warning.message) for warning in record] == [JPEGWarning] * (3 if expected == WARNED else 0)
        assert_equal(again._replace(planes=tuple(p[1:] for p in again.planes), qtables=again.qtables[1:]), found)
        assert found.planes[0].any()
        assert read_jpeg_header(data, strict=strict).geometry == found[2:]
        if kind.equal:
            assert_equal(found, read_jpeg(plain))
        if kind.pillow:
            assert np.array_equal(pixels(data), pixels(write_jpeg(found)[0]))


def as_jpeglib_reads(data: bytes, folder: Path) -> list[np.ndarray]:
    jpeglib = pytest.importorskip("jpeglib")
    path = folder / "file.jpg"
    path.write_bytes(data)
    theirs = jpeglib.read_dct(str(path))
    return [plane for plane in (theirs.Y, theirs.Cb, theirs.Cr, theirs.K) if plane is not None]


def test_a_quantization_entry_of_0_is_kept(tmp_path: Path) -> None:
    jpeglib = pytest.importorskip("jpeglib")
    kind = next(kind for kind in KINDS if kind.name == "0 in a quantization table")
    (tmp_path / "file.jpg").write_bytes(make(kind))
    theirs = jpeglib.read_dct(str(tmp_path / "file.jpg"))
    ours = read_jpeg(tmp_path / "file.jpg")
    assert (ours.qtables == 0).sum() == 1
    np.testing.assert_array_equal(ours.qtables[0, 0].numpy(), theirs.qt[theirs.quant_tbl_no[0]])
    np.testing.assert_array_equal(ours.planes[0][0].numpy(), theirs.Y)
    with pytest.raises(ValueError, match=r"lie from 1 to 65535, and these from 0 to .* clamp them"):
        write_jpeg(ours)


@pytest.mark.parametrize("subsampling", [0, 1, 2])
@pytest.mark.parametrize("options", [{}, {"optimize": True}, {"progressive": True}], ids=str)
def test_truncated_files_as_libjpeg_reads_them(options: dict[str, object], subsampling: int, tmp_path: Path) -> None:
    """All integers, those of the MCU in which the data end included; of a progressive file all but one block."""
    data = encode(picture(80, 64), subsampling=subsampling, quality=85, **options)
    start = scan_end(data, data.index(b"\xff\xda")) if "progressive" in options else data.index(b"\xff\xda") + 20
    for size in range(start, len(data) - 2, 61):
        with pytest.warns(JPEGWarning):
            ours = read_jpeg(data[:size], strict=False)
        try:
            expected = as_jpeglib_reads(data[:size], tmp_path)
        except OSError:  # its own refusal of files that end inside a marker segment
            assert "progressive" in options
            continue
        pairs = zip(ours.planes, expected, strict=True)
        different = sum(int((plane[0].numpy() != theirs).any((2, 3)).sum()) for plane, theirs in pairs)
        assert different <= ("progressive" in options)


def test_height_from_a_number_of_lines_is_found_beyond_what_is_read_at_first(tmp_path: Path) -> None:
    kind = next(kind for kind in KINDS if kind.name.startswith("height 0"))
    plain = encode(picture(400, 300), quality=98, subsampling=0)
    data = kind.change(plain)
    assert scan_end(data, data.index(b"\xff\xda")) > 1 << 16
    (tmp_path / "file.jpg").write_bytes(data)
    assert read_jpeg_header(tmp_path / "file.jpg").image_size == (300, 400)
    assert_equal(read_jpeg(tmp_path / "file.jpg"), read_jpeg(plain))
    with pytest.raises(JPEGError, match=r"a height of 0, which no number of lines \(DNL\)"):
        read_jpeg(data[:-1000].replace(b"\xff\xdc", b"\xff\xfe"))


# -- metadata ----------------------------------------------------------------------------------------------------------


def with_segment(data: bytes, code: int, payload: bytes) -> bytes:
    return data[:2] + bytes([0xFF, code]) + struct.pack(">H", len(payload) + 2) + payload + data[2:]


def exif_orientation(kind: int, value: int, order: str = "<") -> bytes:
    head = (b"II*\0" if order == "<" else b"MM\0*") + struct.pack(f"{order}IH", 8, 1)
    field = struct.pack(f"{order}HH", value, 0) if kind == 3 else struct.pack(f"{order}I", value)
    return b"Exif\0\0" + head + struct.pack(f"{order}HHI", 0x0112, kind, 1) + field + bytes(4)


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize(("kind", "value", "expected"), [(3, 6, 6), (4, 6, 6), (4, 8, 8), (4, 9, 1), (2, 6, 1)])
def test_orientation_as_short_and_long(kind: int, value: int, expected: int, order: str) -> None:
    data = with_segment(encode(picture(9, 9)), 0xE1, exif_orientation(kind, value, order))
    assert read_jpeg_header(data).orientation == expected
    if expected == value:
        assert Image.open(io.BytesIO(data)).getexif()[0x0112] == value


XMP = b"http://ns.adobe.com/xap/1.0/\0<x:xmpmeta xmlns:x='adobe:ns:meta/'><rdf:Description %s/></x:xmpmeta>"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (b"tiff:Orientation='6'", 6),
        (b'tiff:Orientation="8"', 8),
        (b"><tiff:Orientation>3</tiff:Orientation><x", 3),
        (b"tiff:Orientation='9'", 1),
        (b"xtiff:Orientation='6'", 1),
        (b"", 1),
    ],
)
def test_orientation_in_xmp(text: bytes, expected: int) -> None:
    plain = encode(picture(9, 9))
    data = with_segment(plain, 0xE1, XMP % text)
    assert read_jpeg_header(data).orientation == expected
    # Exif comes first, wherever it stands; without the tag it leaves the word to XMP.
    other = with_segment(data, 0xE1, exif_orientation(3, 2))
    assert read_jpeg_header(other).orientation == 2
    empty = with_segment(data, 0xE1, b"Exif\0\0II*\0" + struct.pack("<IHI", 8, 0, 0))
    assert read_jpeg_header(empty).orientation == expected


def test_metadata_as_pillow_reads_and_writes_them() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    exif[0x010E] = "a description"
    profile = np.random.default_rng(0).bytes(150_000)
    data = encode(picture(40, 24), exif=exif, icc_profile=profile, comment=b"before")
    header = read_jpeg_header(data)
    info = Image.open(io.BytesIO(data)).info
    assert header.exif == info["exif"] == exif.tobytes()
    assert header.icc_profile == info["icc_profile"] == profile
    assert header.orientation == 6
    (written,) = write_jpeg(read_jpeg(data), exif=header.exif, icc_profile=header.icc_profile, comment="naïve")
    theirs = Image.open(io.BytesIO(written))
    assert theirs.info["exif"] == header.exif
    assert theirs.info["icc_profile"] == profile
    assert theirs.info["comment"] == "naïve".encode()
    assert read_jpeg_header(written)[7:] == header[7:]
    assert_equal(read_jpeg(written), read_jpeg(data))
    again = encode(picture(9, 9), exif=header.exif)  # what save() takes
    assert read_jpeg_header(again).orientation == 6
    bare = write_jpeg(read_jpeg(data), exif=exif.tobytes()[6:])[0]
    assert read_jpeg_header(bare).exif == header.exif
    plain = read_jpeg_header(encode(picture(9, 9)))
    assert plain.exif is None
    assert plain.icc_profile is None


def test_a_profile_that_lacks_a_piece_is_none() -> None:
    data = encode(picture(9, 9), icc_profile=bytes(150_000))
    start = data.index(b"ICC_PROFILE\0\2") - 4
    assert read_jpeg_header(data[:start] + data[start + 4 + 65533 :]).icc_profile is None


def test_metadata_that_cannot_be_written() -> None:
    coefficients = read_jpeg(encode(picture(9, 9)))
    with pytest.raises(ValueError, match="must be a TIFF structure"):
        write_jpeg(coefficients, exif=b"nothing")
    with pytest.raises(ValueError, match=r"exif has 70006 bytes, and a segment holds 65533"):
        write_jpeg(coefficients, exif=b"II*\0" + bytes(69996))
    with pytest.raises(TypeError, match=r"exif must be bytes, not Exif; call its method tobytes\(\)"):
        write_jpeg(coefficients, exif=Image.Exif())  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"comment has 65534 bytes"):
        write_jpeg(coefficients, comment="x" * 65534)
    with pytest.raises(ValueError, match="icc_profile has 0 bytes"):
        write_jpeg(coefficients, icc_profile=b"")


# -- sources -----------------------------------------------------------------------------------------------------------


def test_open_files(tmp_path: Path) -> None:
    data = encode(picture(400, 300), quality=98, icc_profile=bytes(80_000))
    (tmp_path / "file.jpg").write_bytes(data)
    expected = read_jpeg(data)
    with open(tmp_path / "file.jpg", "rb") as file:
        assert read_jpeg_header(file) == read_jpeg_header(data)
        assert file.tell() == 0
        assert_equal(read_jpeg(file), expected)
    batch = read_jpeg([io.BytesIO(data), tmp_path / "file.jpg", data])
    for i in range(3):
        assert torch.equal(batch.planes[0][i], expected.planes[0][0])
    with (
        open(tmp_path / "file.jpg", encoding="latin-1") as text,
        pytest.raises(TypeError, match='open it in mode "rb"'),
    ):
        read_jpeg(text)  # type: ignore[arg-type]
    (tmp_path / "bad.jpg").write_bytes(data[:-50])
    with open(tmp_path / "bad.jpg", "rb") as file, pytest.raises(JPEGError, match=r"bad\.jpg, byte \d+: "):
        read_jpeg(file)


def test_a_folder_names_the_dataset(tmp_path: Path) -> None:
    for read in (read_jpeg, read_jpeg_header):
        with pytest.raises(IsADirectoryError, match=r"is a folder, .* cdzoo\.data\.CoefficientDataset reads all"):
            read(tmp_path)


@pytest.mark.parametrize("format", ["PNG", "WEBP", "GIF", "TIFF"])
def test_other_formats_are_decoded_if_asked_to(format: str, tmp_path: Path) -> None:
    from cdzoo.images import read_image
    from cdzoo.jpeg.pixels import decode_jpeg

    path = tmp_path / "photo.jpg"
    picture(61, 45).save(path, format)
    with pytest.raises(JPEGError, match=r"photo\.jpg, byte 0: no JPEG file"):
        read_jpeg(path)
    found = read_jpeg(path, fallback="decode")
    assert (found.planes[0].dtype, found.color_space, found.sampling) == (torch.int16, "ycbcr", ((1, 1),) * 3)
    assert (found.qtables == 1).all()
    difference = 255 * (decode_jpeg(found) - read_image(path))
    assert difference.square().mean().sqrt() < 0.6
    jpeg = encode(picture(61, 45), subsampling=0)
    batch = read_jpeg([path, jpeg], fallback="decode")
    assert torch.equal(batch.planes[1][1], read_jpeg(jpeg).planes[1][0])
    assert torch.equal(batch.planes[1][0], found.planes[1][0])
    with pytest.raises(JPEGError, match=r"photo\.jpg: .*2745|photo\.jpg: .*61"):
        read_jpeg(path, fallback="decode", max_pixels=100)


def test_the_fallback_is_not_for_damage() -> None:
    good = encode(picture(61, 45))
    with pytest.raises(JPEGError, match="too early"):
        read_jpeg(good[:-200], fallback="decode")
    with pytest.raises(JPEGError, match=r"source\[1\]: .*Pillow cannot decode it: "):
        read_jpeg([good, b"neither"], fallback="decode")
    with pytest.raises(JPEGError, match="empty"):
        read_jpeg(b"", fallback="decode")
    with pytest.raises(ValueError, match=r'fallback=\'pillow\': it is "decode" or None; "decode" lets Pillow decode'):
        read_jpeg(good, fallback="pillow")  # type: ignore[arg-type]
