"""read_jpeg against other readers, integer for integer, and against files that want to break it."""

from __future__ import annotations

import io
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from oracles.fresh_process import FreshProcesses
from oracles.jpeg_files import encode, picture
from PIL import Image

from cdzoo.errors import JPEGError
from cdzoo.jpeg.files import read_jpeg, read_jpeg_header, write_jpeg
from cdzoo.types import JPEGCoefficients

jpeglib = pytest.importorskip("jpeglib")


def assert_as_jpeglib_reads(data: bytes, folder: Path) -> JPEGCoefficients:
    path = folder / "file.jpg"
    path.write_bytes(data)
    theirs = jpeglib.read_dct(str(path))
    planes = [plane for plane in (theirs.Y, theirs.Cb, theirs.Cr, theirs.K) if plane is not None]
    ours = read_jpeg(data)
    assert len(ours.planes) == len(planes)
    assert ours.image_size == (theirs.height, theirs.width)
    for k, plane in enumerate(planes):
        assert ours.planes[k].dtype == torch.int16
        np.testing.assert_array_equal(ours.planes[k][0].numpy(), plane)
        np.testing.assert_array_equal(ours.qtables[0, k].numpy(), theirs.qt[theirs.quant_tbl_no[k]])
    return ours


KINDS: dict[str, dict[str, object]] = {
    "4:2:0": {},
    "4:2:2": {"subsampling": 1, "quality": 90},
    "4:4:4": {"subsampling": 0, "quality": 97},
    "worst": {"quality": 1},
    "best": {"quality": 100, "subsampling": 0},
    "optimized": {"optimize": True, "quality": 50},
    "progressive": {"progressive": True},
    "progressive best": {"progressive": True, "quality": 100, "subsampling": 0},
    "progressive restarts": {"progressive": True, "restart_marker_blocks": 3},
    "restarts": {"restart_marker_blocks": 2},
    "restart rows": {"restart_marker_rows": 1, "subsampling": 1},
}


@pytest.mark.parametrize("size", [(1, 1), (8, 8), (17, 9), (40, 48), (101, 67)])
@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_as_jpeglib_reads_it(kind: str, size: tuple[int, int], tmp_path: Path) -> None:
    for mode, space in (("RGB", "ycbcr"), ("L", "gray"), ("CMYK", "cmyk")):
        coefficients = assert_as_jpeglib_reads(encode(picture(*size, mode), **KINDS[kind]), tmp_path)
        assert coefficients.color_space == space


def test_as_pyjpegio_reads_it(tmp_path: Path) -> None:
    jpegio = pytest.importorskip("jpegio")
    data = encode(picture(133, 75), quality=85)
    (tmp_path / "file.jpg").write_bytes(data)
    theirs = jpegio.read(str(tmp_path / "file.jpg"))
    for plane, array in zip(read_jpeg(data).planes, theirs.coef_arrays, strict=True):
        rows, columns = plane.shape[1:3]
        blocks = np.asarray(array).reshape(array.shape[0] // 8, 8, -1, 8).swapaxes(1, 2)
        np.testing.assert_array_equal(plane[0].numpy(), blocks[:rows, :columns])


SAMPLINGS = [
    ((1, 1), (1, 1), (1, 1)),
    ((2, 1), (1, 1), (1, 1)),  # 4:4:0
    ((1, 4), (1, 1), (1, 1)),  # 4:1:1
    ((4, 1), (1, 1), (1, 1)),
    ((2, 4), (1, 1), (1, 1)),  # 4:1:0
    ((1, 1), (2, 2), (1, 2)),  # luma is the smallest
    ((1, 2), (2, 1), (1, 1)),
    ((3, 1), (2, 1), (1, 2)),
    ((4, 4), (2, 1), (1, 1)),  # too many blocks to interleave
    ((2, 2), (2, 1), (1, 2), (2, 2)),
]


def random_coefficients(sampling: tuple[tuple[int, int], ...], size: tuple[int, int], space: str) -> JPEGCoefficients:
    generator = torch.Generator().manual_seed(len(sampling) * size[0] + size[1])
    tallest, widest = max(v for v, _ in sampling), max(h for _, h in sampling)
    planes = []
    for v, h in sampling:
        rows, columns = -(-size[0] * v // (8 * tallest)), -(-size[1] * h // (8 * widest))
        values = torch.randn((1, rows, columns, 8, 8), generator=generator) * torch.linspace(9, 0, 64).view(8, 8) ** 2
        planes.append(values.to(torch.int16))
    qtables = torch.randint(1, 256, (1, len(sampling), 8, 8), generator=generator, dtype=torch.int32)
    return JPEGCoefficients(tuple(planes), qtables, sampling, size, space)


@pytest.mark.parametrize("sampling", SAMPLINGS)
@pytest.mark.parametrize("size", [(5, 3), (50, 75)])
def test_every_sampling(sampling: tuple[tuple[int, int], ...], size: tuple[int, int], tmp_path: Path) -> None:
    written = random_coefficients(sampling, size, "ycbcr" if len(sampling) == 3 else "cmyk")
    (data,) = write_jpeg(written)
    if 3 not in [factor for pair in sampling for factor in pair]:  # jpeglib knows no thirds
        assert_as_jpeglib_reads(data, tmp_path)
    read = read_jpeg(data)
    assert read[2:] == written[2:]
    for ours, theirs in zip(read.planes, written.planes, strict=True):
        assert torch.equal(ours, theirs)
    header = read_jpeg_header(data)
    assert header.sampling == sampling
    assert header.block_sizes == tuple((plane.shape[1], plane.shape[2]) for plane in read.planes)


def test_gray_sampling_means_nothing() -> None:
    data = bytearray(encode(picture(30, 20, "L")))
    position = data.index(b"\xff\xc0") + 11
    data[position] = 0x22
    changed = read_jpeg(bytes(data))
    assert changed.sampling == ((1, 1),)
    assert torch.equal(changed.planes[0], read_jpeg(encode(picture(30, 20, "L"))).planes[0])


def test_header(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    data = encode(picture(70, 50), progressive=True, exif=exif, restart_marker_blocks=5)
    header = read_jpeg_header(data)
    assert header.image_size == (50, 70)
    assert header.kind == "progressive"
    assert header.orientation == 6
    assert header.restart_interval == 5
    assert (header.num_components, header.precision, header.color_space) == (3, 8, "ycbcr")
    assert header.block_sizes == ((7, 9), (4, 5), (4, 5))
    assert read_jpeg_header(encode(picture(9, 9))).orientation == 1
    # Headers beyond what is read at first.
    (tmp_path / "big.jpg").write_bytes(data[:2] + (b"\xff\xe2\xff\xff" + bytes(65533)) * 3 + data[2:])
    assert read_jpeg_header(tmp_path / "big.jpg") == header
    assert read_jpeg_header(encode(picture(9, 9)).replace(b"\xff\xc0", b"\xff\xc1")).kind == "extended"


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize(("value", "orientation"), [(1, 1), (3, 3), (8, 8), (0, 1), (9, 1)])
def test_orientation(order: str, value: int, orientation: int) -> None:
    import struct

    tiff = (b"II*\0" if order == "<" else b"MM\0*") + struct.pack(f"{order}IHHHIHH", 8, 1, 0x0112, 3, 1, value, 0)
    segment = b"Exif\0\0" + tiff
    data = encode(picture(9, 9))
    for cut in (0, 1, 9, 13):  # damaged Exif data say nothing, and do no harm
        part = segment[: len(segment) - cut]
        file = data[:2] + b"\xff\xe1" + struct.pack(">H", len(part) + 2) + part + data[2:]
        assert read_jpeg_header(file).orientation == (orientation if cut == 0 else 1)
        read_jpeg(file)


def with_marker(data: bytes, code: int, payload: bytes) -> bytes:
    return data[:2] + bytes([0xFF, code]) + (len(payload) + 2).to_bytes(2, "big") + payload + data[2:]


def without_jfif(data: bytes) -> bytes:
    assert data[2:4] == b"\xff\xe0"
    return data[:2] + data[4 + int.from_bytes(data[4:6], "big") :]


def adobe(transform: int) -> bytes:
    return b"Adobe\0d\0\0\0\0" + bytes([transform])


def test_color_spaces_are_told_apart_as_libjpeg_does() -> None:
    ycbcr = encode(picture(16, 16), subsampling=0)
    bare = without_jfif(ycbcr)
    assert read_jpeg(bare).color_space == "ycbcr"
    assert read_jpeg(with_marker(bare, 0xEE, adobe(0))).color_space == "rgb"
    assert read_jpeg(with_marker(bare, 0xEE, adobe(1))).color_space == "ycbcr"
    assert read_jpeg(with_marker(ycbcr, 0xEE, adobe(0))).color_space == "ycbcr"  # JFIF wins
    frame = bare.index(b"\xff\xc0")
    letters = bytearray(bare)
    scan = bare.index(b"\xff\xda")
    for n, letter in enumerate(b"RGB"):
        letters[frame + 10 + 3 * n] = letters[scan + 5 + 2 * n] = letter
    assert read_jpeg(bytes(letters)).color_space == "rgb"
    cmyk = encode(picture(16, 16, "CMYK"))
    assert read_jpeg(cmyk).color_space == "cmyk"
    start = cmyk.index(b"Adobe")
    assert read_jpeg(cmyk[: start + 11] + b"\2" + cmyk[start + 12 :]).color_space == "ycck"
    for data in (bare, with_marker(bare, 0xEE, adobe(0)), bytes(letters)):
        pillow = Image.open(io.BytesIO(data))
        kept = read_jpeg(data).color_space
        expected = np.asarray(pillow)
        raw = np.asarray(Image.open(io.BytesIO(with_marker(bare, 0xEE, adobe(0)))))
        assert (kept == "rgb") == np.array_equal(expected, raw)


def test_sources_and_batches(tmp_path: Path) -> None:
    files = [encode(picture(50, 30, seed=i), quality=40 + 10 * i, progressive=i == 2) for i in range(5)]
    paths = [tmp_path / f"{i}.jpg" for i in range(5)]
    for path, data in zip(paths, files, strict=True):
        path.write_bytes(data)
    alone = [read_jpeg(data) for data in files]
    for threads in (None, 1, 2, 9):
        for sources in (files, paths, [str(path) for path in paths], [*files[:2], *paths[2:]]):
            batch = read_jpeg(sources, num_threads=threads)
            assert batch[2:] == alone[0][2:]
            for k in range(3):
                assert torch.equal(batch.planes[k], torch.cat([one.planes[k] for one in alone]))
            assert torch.equal(batch.qtables, torch.cat([one.qtables for one in alone]))
    for source in (bytearray(files[0]), memoryview(files[0]), str(paths[0]), paths[0]):
        assert torch.equal(read_jpeg(source).planes[0], alone[0].planes[0])
    with pytest.raises(ValueError, match="empty"):
        read_jpeg([])
    with pytest.raises(ValueError, match="num_threads must be at least 1, not 0"):
        read_jpeg(files, num_threads=0)
    with pytest.raises(TypeError, match="a path, the bytes of a file, or an open file, not ndarray"):
        read_jpeg([np.zeros(3)])  # type: ignore[list-item]
    with pytest.raises(FileNotFoundError):
        read_jpeg(tmp_path / "none.jpg")


def test_geometries_must_agree() -> None:
    first = encode(picture(50, 30))
    for other in (encode(picture(49, 30)), encode(picture(50, 30), subsampling=0), encode(picture(50, 30, "L"))):
        with pytest.raises(ValueError, match=r"source\[2\] has .*transform=CoefficientTransform") as info:
            read_jpeg([first, first, other, first])
        assert not isinstance(info.value, JPEGError)


def test_out_is_reused() -> None:
    files = [encode(picture(50, 30, seed=i), progressive=i == 1) for i in range(4)]
    out = read_jpeg(files[:2])
    addresses = [tensor.data_ptr() for tensor in (*out.planes, out.qtables)]
    for plane in out.planes:
        plane.fill_(77)
    result = read_jpeg(files[2:], out=out)
    assert [tensor.data_ptr() for tensor in (*result.planes, result.qtables)] == addresses
    for ours, fresh in zip(result.planes, read_jpeg(files[2:]).planes, strict=True):
        assert torch.equal(ours, fresh)
    again = read_jpeg(files[:2], out=result)
    for ours, fresh in zip(again.planes, read_jpeg(files[:2]).planes, strict=True):
        assert torch.equal(ours, fresh)
    with pytest.raises(ValueError, match="out does not fit"):
        read_jpeg(files[:1], out=out)
    with pytest.raises(ValueError, match="out does not fit"):
        read_jpeg(files[:2], out=out._replace(planes=tuple(plane.int() for plane in out.planes)))
    strided = tuple(plane.transpose(-1, -2).contiguous().transpose(-1, -2) for plane in out.planes)
    with pytest.raises(ValueError, match="contiguous"):
        read_jpeg(files[:2], out=out._replace(planes=strided))
    with pytest.raises(ValueError, match="CPU"):
        read_jpeg(files[:2], out=out.to("meta"))


def test_numba_is_imported_on_first_use(fresh: FreshProcesses) -> None:
    data = encode(picture(8, 8)).hex()
    code = f"""
import sys
from cdzoo.jpeg.files import read_jpeg, read_jpeg_header
read_jpeg_header(bytes.fromhex("{data}"))
print("numba" in sys.modules)
read_jpeg(bytes.fromhex("{data}"))
print("numba" in sys.modules)
"""
    assert fresh(code).stdout.split() == ["False", "True"]


class _Reads(torch.utils.data.Dataset[torch.Tensor]):
    def __init__(self, files: list[bytes]) -> None:
        self.files = files

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> torch.Tensor:
        return read_jpeg([self.files[index]] * 3, num_threads=2).planes[0][2]


@pytest.mark.skipif(sys.platform != "linux", reason="forks")
@pytest.mark.filterwarnings("ignore:This process.*is multi-threaded:DeprecationWarning")
def test_forked_workers() -> None:
    files = [encode(picture(32, 24, seed=i)) for i in range(6)]
    expected = torch.cat([read_jpeg([data] * 2, num_threads=2).planes[0][:1] for data in files])
    loader = torch.utils.data.DataLoader(_Reads(files), batch_size=2, num_workers=1, multiprocessing_context="fork")
    assert torch.equal(torch.cat(list(loader)), expected)


@pytest.mark.slow
def test_numbas_switch_is_for_others(tmp_path: Path) -> None:
    """Under ``NUMBA_DISABLE_JIT``, which is set to debug other code, the coders' loops are compiled all the same."""
    (tmp_path / "file.jpg").write_bytes(encode(picture(9, 8)))
    code = (
        "import numba, sys, torch; from cdzoo.codecs import read_jpeg, torfason2018, write_jpeg\n"
        "codec, x = torfason2018(latent_channels=4, N=4), torch.rand(1, 3, 16, 16)\n"
        "assert torch.equal(codec.decompress(codec.compress(x)).y_hat, codec.encode(x).y_hat)\n"
        "sys.stdout.buffer.write(write_jpeg(read_jpeg(sys.argv[1]))[0]); assert numba.config.DISABLE_JIT == 1"
    )
    command = [sys.executable, "-c", code, str(tmp_path / "file.jpg")]
    result = subprocess.run(command, env={**os.environ, "NUMBA_DISABLE_JIT": "1"}, capture_output=True, timeout=300)
    assert result.returncode == 0, result.stderr.decode()
    assert result.stdout == write_jpeg(read_jpeg(tmp_path / "file.jpg"))[0]
