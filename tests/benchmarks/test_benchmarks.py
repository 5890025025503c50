"""The benchmark: what its rows say, that its groups run, and the page."""

from __future__ import annotations

import importlib
import json
import statistics
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import cdzoo.codecs
from cdzoo.codecs import read_jpeg, read_jpeg_header
from cdzoo.demo import PHOTO

ROOT = Path(__file__).parents[2]
BENCHMARKS = ROOT / "benchmarks"
pytestmark = pytest.mark.filterwarnings("ignore:The image decoding and encoding capabilities of TorchVision")
FILTER = pytest.mark.filterwarnings("ignore:`torch.jit.*` is deprecated")  # CompressAI's, when it is imported
ONE_THREAD = ("--quick", "--threads", "1", "--only")


@pytest.fixture(scope="module")
def scripts() -> Iterator[dict[str, ModuleType]]:
    """The scripts that need no other library; nothing of them is left behind, for their names are anybody's."""
    before = list(sys.path)
    sys.path.insert(0, str(BENCHMARKS))
    try:
        names = (
            "measuring",
            "pictures",
            "run",
            "report",
            "jpeg_reading",
            "jpeg_networks",
            "memory",
            "imports",
            "large_images",
        )
        yield {name: importlib.import_module(name) for name in names}
    finally:
        sys.path[:] = before
        for file in BENCHMARKS.glob("*.py"):
            sys.modules.pop(file.stem, None)


def check(row: Any) -> None:
    """A row's figures follow from its rounds."""
    assert set(row.rounds) == {"cdzoo", *row.peers}
    assert not set(row.skipped) & set(row.peers)
    assert {"batch", "threads", "size"} <= set(row.case) or row.group in ("entropy-coding", "import")
    assert row.unit in ("ms", "MiB")
    ours = row.rounds["cdzoo"]
    assert min(ours) > 0
    assert row.ours == pytest.approx(statistics.median(ours), rel=1e-3)
    for name, peer in row.peers.items():
        theirs = row.rounds[name]
        assert len(theirs) == len(ours) >= 2
        assert peer.value == pytest.approx(statistics.median(theirs), rel=1e-3)
        assert peer.ratio == pytest.approx(peer.value / row.ours, rel=1e-3)
        quartiles = np.quantile(np.divide(theirs, ours), [0.25, 0.75])  # another library's quartiles
        assert peer.spread == pytest.approx(quartiles, rel=2e-3)


# -- rows --------------------------------------------------------------------------------------------------------


def test_a_row_has_ratios_of_medians_and_quartiles_of_rounds(scripts: dict[str, ModuleType]) -> None:
    measuring = scripts["measuring"]
    rounds = {"fast": [1.0, 2.0, 4.0], "Slow": [3.0, 4.0, 20.0], "Quick": [0.5, 1.0, 2.0]}
    row = measuring.row("growth", {"size": 1, "batch": 1, "threads": 1}, rounds, skipped={"Other": "why"})
    check(row)
    assert list(row.rounds) == ["cdzoo", "Slow", "Quick"]
    assert (row.ours, row.unit) == (2.0, "ms")
    assert row.peers["Slow"] == (4.0, 2.0, (2.5, 4.0))  # of 3, 2, 5
    assert row.peers["Quick"] == (1.0, 0.5, (0.5, 0.5))
    text = measuring.to_json({"date": "today"}, {"accelerator": "none"}, [row, row])
    assert measuring.from_json(text) == ({"date": "today"}, {"accelerator": "none"}, [row, row])
    assert json.loads(text)["rows"][0]["peers"]["Slow"]["ratio"] == 2.0


def test_ways_take_turns(scripts: dict[str, ModuleType]) -> None:
    measuring, calls = scripts["measuring"], []  # type: ignore[var-annotated]
    tasks = {name: lambda name=name: calls.append(name) for name in "ab"}
    times = measuring.timed(tasks, measuring.Options(quick=True), wall=True)
    assert "".join(calls) == "ab" + "ab" + "ba"  # a call that does not count, then rounds in an order that rotates
    assert {name: len(values) for name, values in times.items()} == {"a": 2, "b": 2}
    busy = {"busy": lambda: sum(range(200_000)), "asleep": lambda: __import__("time").sleep(0.01)}
    times = measuring.timed(busy, measuring.Options(quick=True), wall=False)
    assert min(times["busy"]) > 2 * max(times["asleep"])  # processor time
    halves = measuring.timed(busy, measuring.Options(quick=True), wall=True, per=10)
    assert min(halves["asleep"]) == pytest.approx(1, rel=0.9)


def test_threads_are_put_back(scripts: dict[str, ModuleType]) -> None:
    before = torch.get_num_threads()
    for count in (1, 2):
        with scripts["measuring"].torch_threads(count) as over:
            assert torch.get_num_threads() == count
            assert over(lambda x: x + 1, [1, 2, 3]) == [2, 3, 4]
    assert torch.get_num_threads() == before


def test_pictures_go_on_without_a_seam_and_differ(scripts: dict[str, ModuleType]) -> None:
    pictures = scripts["pictures"]
    files = pictures.jpeg_files((70, 90), 3)
    assert {read_jpeg_header(data)[:2] for data in files} == {((70, 90), ((2, 2), (1, 1), (1, 1)))}
    assert len(set(files)) == 3
    wide = pictures.images((600, 900), 1)
    assert wide.shape == (1, 3, 600, 900)
    steps = wide.diff(dim=-1).abs().mean((0, 1, 2))
    assert steps.max() < 4 * steps.mean()
    assert min(wide[..., 700:].std(), wide[..., 500:, :].std()) > 0.05


# -- groups ------------------------------------------------------------------------------------------------------


def test_the_command_measures_prints_and_writes(
    scripts: dict[str, ModuleType], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "simplejpeg", None)  # as where it is not installed
    arguments = [*ONE_THREAD, "jpeg-reading", "jpeg-to-labels", "--json", str(tmp_path / "found.json")]
    header, skipped, rows = scripts["run"].main(arguments)
    assert skipped == {}
    assert {row.group for row in rows} == {"jpeg-reading", "jpeg-to-labels"}
    for row in rows:
        check(row)
        assert {"torchvision", "Pillow"} <= set(row.peers)
    assert rows[0].skipped["simplejpeg"] == "not installed"
    assert [row.case["call"] for row in rows if row.group == "jpeg-reading"] == [
        "one file", "one file, out=", "one file, unseen headers", "a batch",
    ]  # fmt: skip
    assert scripts["measuring"].from_json((tmp_path / "found.json").read_text()) == (header, skipped, rows)
    printed = capsys.readouterr().out
    assert len(printed.splitlines()) == 1 + sum(len(row.peers) + len(row.skipped) for row in rows)
    assert header["versions"]["torch"] == torch.__version__.partition("+")[0]
    assert header["cores"] >= 1


def test_decoders_and_networks_agree(scripts: dict[str, ModuleType]) -> None:
    reading, networks = scripts["jpeg_reading"], scripts["jpeg_networks"]
    files = scripts["pictures"].jpeg_files((448, 448), 2)
    decoded = reading.torchvision_decode(files[0])
    assert torch.equal(decoded, reading.pillow_decode(files[0]))
    assert networks.pillow_draft(files[0], (224, 224)).shape == networks.resized(decoded, (224, 224)).shape
    model, twin = networks.network(trained=True)
    with torch.no_grad(), scripts["measuring"].torch_threads(1) as over:
        networks.check(model, twin, files)
        logits = {name: way() for name, way in networks.ways(model, twin, files, 1, over).items()}
    assert list(logits) == ["cdzoo", "torchvision", "Pillow", "Pillow draft"]
    for name, found in logits.items():  # they reduce by unlike filters
        assert found.shape == (2, 10)
        assert torch.nn.functional.cosine_similarity(found, logits["cdzoo"]).min() > 0.8, name


@pytest.mark.slow
def test_all_ways_to_a_thousand_classes_see_the_same_photograph(scripts: dict[str, ModuleType]) -> None:
    labels = importlib.import_module("labels")
    network = labels.pixel_network()
    model = cdzoo.models.jpeg_efficientnet_lite0(weights="IMAGENET1K_PIXELS").eval()
    codec = cdzoo.models.FA_cResNet39_Weights.DEFAULT.build_codec()
    photo = cdzoo.load_images(PHOTO)
    with torch.no_grad():
        ours = model(read_jpeg(PHOTO, transform=model.transforms))
        image = torch.nn.functional.interpolate(photo, size=(256, 384), mode="bicubic", antialias=True)
        theirs = network((image[..., 16:240, 80:304].clamp(0, 1) - 0.5) / 0.5)
        decoded = labels.decode_and_label(codec, network, codec.compress(photo), 1)
        rows = list(labels.rows(scripts["measuring"].Options(quick=True, threads=(1,))))
    assert ours.argmax(1) == theirs.argmax(1)
    assert torch.nn.functional.cosine_similarity(ours, theirs) > 0.99
    assert torch.nn.functional.cosine_similarity(decoded, theirs) > 0.5
    assert [row.case["network"] for row in rows] == ["stem dct", "stem pixels", "latents"]
    for row in rows:
        check(row)


@pytest.mark.slow
def test_photographs_of_any_size(scripts: dict[str, ModuleType]) -> None:
    any_size = importlib.import_module("jpeg_any_size")
    options = scripts["measuring"].Options(quick=True, threads=(1,))
    found, skipped = any_size.ways()
    assert not set(found) & set(skipped)
    data = any_size.jpeg_file((866, 1155), 85, "4:2:0", False, options)
    errors = {name: any_size.error(found[name](data), data) for name in ("cdzoo", "torchvision", "Pillow")}
    assert errors["cdzoo"] < 1e-3 < 0.3 < errors["torchvision"] < errors["Pillow"] + 0.1 < 1.5
    rows = list(any_size.rows(options))
    for row in rows:
        check(row)
        assert {"torchvision", "Pillow", "Pillow draft"} <= set(row.peers)
    assert {row.case["call"] for row in rows} == {
        "bytes to input", "bytes to coefficients", "bytes to labels", "DataLoader",
    }  # fmt: skip


@pytest.mark.compressai
@FILTER
def test_the_accelerator_is_skipped_with_a_reason_or_runs(
    scripts: dict[str, ModuleType], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("compressai")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert scripts["run"].main([*ONE_THREAD, "accelerator"])[1:] == ({"accelerator": "no CUDA device"}, [])
    assert "accelerator     skipped: no CUDA device" in capsys.readouterr().out
    accelerator = importlib.import_module("accelerator")
    rows = list(accelerator.rows(scripts["measuring"].Options(quick=True, threads=(1,)), device="cpu"))
    assert [(row.case["from"], row.case["network"], *row.peers) for row in rows] == [
        ("JPEG", "jpeg_resnet18", "torchvision", "Pillow"),
        (".cdz", "fa_cresnet39", "CompressAI"),
        (".cdz", "cresnet39", "CompressAI"),
    ]
    for row in rows:
        check(row)


@pytest.mark.compressai
@FILTER
def test_the_learned_peer_gives_the_same_latents(scripts: dict[str, ModuleType]) -> None:
    pytest.importorskip("compressai")
    learned = importlib.import_module("learned_codecs")
    x = scripts["pictures"].images((64, 64), 2)
    for name in learned.THEIRS:
        codecs = learned.pair(name, trained=False, N=8, M=12)
        bits = learned.coded(codecs, x)
        y_hat = codecs.ours.decompress(bits.streams).y_hat
        with torch.no_grad():
            theirs = learned.compressai_latent(codecs.theirs, bits.packed)
        torch.testing.assert_close(theirs, y_hat, rtol=0, atol=1e-3)  # means come from integers here
        assert y_hat.unique().numel() > 3, name  # not all zeros, which cost nothing


@pytest.mark.compressai
@FILTER
def test_a_peer_that_would_take_too_long_is_left_out(
    scripts: dict[str, ModuleType], monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("compressai")
    growth = importlib.import_module("growth")
    monkeypatch.setattr(growth, "LONGEST", 0.0)
    monkeypatch.setattr(growth, "SIZES", (64, 64, 64))
    rows = [row for row in growth.rows(scripts["measuring"].Options(quick=True)) if row.case["from"] == ".cdz"]
    assert [list(row.peers) for row in rows] == [["CompressAI"], []]
    assert rows[1].skipped["CompressAI"].endswith(" s a call expected")
    for row in rows:
        check(row)


def test_paths_whose_memory_is_measured(scripts: dict[str, ModuleType], tmp_path: Path) -> None:
    memory = scripts["memory"]
    (data,) = scripts["pictures"].jpeg_files((40, 40), 1)
    (tmp_path / "x.jpg").write_bytes(data)
    assert set(memory.SIZES) == set(memory.PATHS)
    with torch.no_grad():
        for name in memory.PATHS["JPEG to tensors"] + memory.PATHS["JPEG to labels"]:
            found = memory.path(name, tmp_path)(str(tmp_path / "x.jpg"))
            if name == "read_jpeg":
                assert isinstance(found, cdzoo.JPEGCoefficients)
            else:
                assert found.shape == ((1, 1000) if "resnet18" in name else (3, 40, 40)), name
    if Path("/proc/self/status").exists():
        assert 10 < memory.resident("VmRSS") <= memory.resident("VmHWM")


def test_large_pictures_are_mirrored_copies(scripts: dict[str, ModuleType]) -> None:
    large_images = scripts["large_images"]
    with Image.open(large_images.PHOTO) as image:
        photo = np.asarray(image.convert("RGB"))
    found = np.asarray(large_images.picture(2.5))
    assert found.shape[:2] == (1369, 1825)
    around = [(0, n - size) for n, size in zip(found.shape, photo.shape, strict=True)]
    assert np.array_equal(found, np.pad(photo, around, mode="symmetric"))


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="memory is read from /proc")
def test_memory_of_large_pictures(scripts: dict[str, ModuleType], capsys: pytest.CaptureFixture[str]) -> None:
    rows = scripts["large_images"].main(["3"])
    assert [row[:2] for row in rows] == [("compress", 3.0), ("decompress", 3.0)]
    assert all(12 * 3e6 / 2**20 < above < 800 for _, _, above in rows)
    assert len(capsys.readouterr().out.splitlines()) == 4


def test_import_times(scripts: dict[str, ModuleType], monkeypatch: pytest.MonkeyPatch) -> None:
    imports = scripts["imports"]
    monkeypatch.setattr(imports, "SCRIPT", imports.SCRIPT.replace("import torch", "import this"))  # which is quick
    whole, beyond = imports.seconds("wave")
    assert whole > beyond >= 0
    with pytest.raises(ImportError, match="no_such_module"):
        imports.seconds("no_such_module")


# -- the page ----------------------------------------------------------------------------------------------------


def test_rows_that_are_not_ahead_are_named(scripts: dict[str, ModuleType], tmp_path: Path) -> None:
    measuring, report = scripts["measuring"], scripts["report"]
    case = {"from": "JPEG", "size": 64, "batch": 1, "threads": 1}
    rounds = {"cdzoo": [2.0, 2.0, 2.0, 2.0], "A": [1.0] * 4, "B": [1.0, 2.0, 3.0, 4.0], "C": [4.0] * 4}
    row = measuring.row("growth", case, rounds)
    listed = report.behind([row]).splitlines()[2:]
    assert [(line.split("|")[3].strip(), line.split("|")[6].strip()) for line in listed] == [
        ("A", "**behind**"),
        ("B", "**even**"),
    ]
    # the ratio of medians says slower, most rounds say faster
    mixed = measuring.row("growth", case, {"cdzoo": [1.0, 1.0, 3.0, 3.0, 3.0], "D": [1.5, 1.5, 2.5, 4.0, 4.0]})
    assert mixed.peers["D"].ratio < 1 < mixed.peers["D"].spread[0]
    assert "**even**" in report.behind([mixed])
    assert report.behind([measuring.row("growth", case, {"cdzoo": [1.0, 1.0], "C": [2.0, 2.0]})]).startswith("Nowhere")
    assert "| JPEG | 64 | 1 | 1 | 2 | 1 (**0.5**, 0.5 to 0.5) |" in report.section([row])
    files = {"files": "JPEG, quality 85", "top-1 (%)": 80.0, "size": "64x96", "batch": 1, "threads": 1}
    peers = {"cdzoo": [5.0, 5.0], "torchvision": [20.0, 20.0]}
    labels = [measuring.row("labels", {**files, "network": stem}, peers) for stem in ("stem dct", "stem pixels")]
    streams = {**files, "files": ".cdz", "network": "latents"}
    labels.append(measuring.row("labels", streams, {"cdzoo": [4.0, 4.0], "decode": [8.0, 8.0]}))
    header = measuring.machine(measuring.Options()) | {"load_after": 0.0}
    elsewhere = [(header | {"accelerator": "a GPU"}, {}, [row._replace(group="accelerator")])]
    report.write(header, {"memory": "why not", "accelerator": "none"}, [row, *labels], tmp_path, elsewhere)
    text = (tmp_path / "benchmarks.md").read_text()
    opening = text.partition("\n![")[0]
    assert [word for word in opening.split() if word.strip("*").isdigit()] == [
        "**200**",
        "**200**",
        "50",
        "**250**",
        "125",
    ]
    assert "another run:\n\n" in text.partition("## accelerator")[2]
    assert text.index("| accelerator | none |") < text.index("## accelerator") < text.index("| accelerator | a GPU |")
    assert "Not measured: none." not in text
    here = row._replace(group="accelerator", ours=7.77)
    report.write(
        header, {"memory": "why not"}, [row, *labels, here], tmp_path, elsewhere
    )  # this machine has one itself
    text = (tmp_path / "benchmarks.md").read_text()
    assert "was measured in another run" not in text
    section = text.partition("## accelerator")[2].partition("\n## ")[0]
    assert [line.split("|")[5].strip() for line in section.splitlines() if "| JPEG |" in line] == ["7.77"]
    assert "Not measured: why not." in text
    assert [file.name for file in sorted((tmp_path / "benchmarks").iterdir())] == ["growth.png", "labels.png"]
