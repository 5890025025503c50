"""``cdzoo compress --bpp`` and ``--psnr``, the summary, and the progress of ``compress`` and ``decompress``."""

from __future__ import annotations

import io
import json
import os
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

import cdzoo
from cdzoo.bulk import compress as bulk_compress
from cdzoo.cli import main
from cdzoo.codecs import RateControl
from cdzoo.codecs.hyperprior import RATES
from cdzoo.images import decode_image, read_image

PHOTOGRAPH = Path(cdzoo.__file__).parent / "assets" / "summer_palace.jpg"
RECORD = ".cdzoo-targets.jsonl"
Run = Callable[..., Any]


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Run:
    def run_main(*args: object, status: int = 0) -> Any:
        capsys.readouterr()
        assert main([*map(str, args), "--json"]) == status
        return json.loads(capsys.readouterr().out)

    return run_main


@pytest.fixture
def photographs(tmp_path: Path) -> Path:
    """Three images, for which one target asks for different rates."""
    folder = tmp_path / "in"
    (folder / "sub").mkdir(parents=True)
    with Image.open(PHOTOGRAPH) as image:
        image.crop((200, 200, 264, 248)).save(folder / "busy.png")
        image.crop((0, 0, 80, 64)).save(folder / "sub" / "calm.png")
    Image.new("RGB", (64, 64), "gray").save(folder / "flat.png")
    return folder


@pytest.mark.parametrize(("option", "value"), [("bpp", 0.6), ("psnr", 24.0)])
def test_each_image_gets_the_best_rate_for_the_target(
    photographs: Path, tmp_path: Path, run: Run, option: str, value: float, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    found = run("compress", photographs, "-o", out, f"--{option}", value)
    names = [member.name for member in RATES]
    codecs = [cdzoo.get_codec("bmshj2018_hyperprior", weights=member).eval() for member in RATES]
    control = RateControl(codecs, **{option: value})  # type: ignore[arg-type]
    choices = []
    for entry in found["files"]:
        (choice,) = control.compress(read_image(entry["file"]))
        assert Path(entry["output"]).read_bytes() == choice.stream
        assert entry["weights"] == names[choice.position]
        assert (entry["bpp"], entry.get("psnr"), entry["reached"]) == (choice.bpp, choice.psnr, choice.reached)
        choices.append(choice)
    positions = [choice.position for choice in choices]
    assert len(set(positions)) > 1
    assert found["target"] == {option: value}
    assert found["fingerprints"] == {n: c.fingerprint for n, c in zip(names, codecs, strict=True)}
    summary = found["summary"]
    assert summary["rates"] == {name: positions.count(i) for i, name in enumerate(names)}
    assert summary["missed"] == sum(not choice.reached for choice in choices)
    assert summary["mean_bpp"] == pytest.approx(sum(choice.bpp for choice in choices) / 3)
    assert ("mean_psnr" in summary) == (option == "psnr")
    pixels = 64 * 48 + 80 * 64 + 64 * 64
    assert summary["megapixels"] == pytest.approx(pixels / 1e6)
    assert summary["megapixels_per_second"] == pytest.approx(pixels / 1e6 / summary["seconds"])

    again = run("compress", photographs, "-o", out, f"--{option}", value)  # facts come from the record
    assert {entry.pop("status") for entry in again["files"]} == {"skipped"}
    assert again["files"] == [{k: v for k, v in entry.items() if k != "status"} for entry in found["files"]]
    assert again["summary"]["rates"] == summary["rates"]
    assert main(["compress", str(photographs), "-o", str(out), f"--{option}", str(value)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert re.search(rf"target {value:g} .*: .*\d at {names[positions[0]]}", "\n".join(lines))
    assert lines[-1] == "0 written, 3 skipped, 0 failed"


def test_a_target_that_no_rate_reaches(
    photographs: Path, tmp_path: Path, run: Run, capsys: pytest.CaptureFixture[str]
) -> None:
    busy = photographs / "busy.png"
    for option, value, name in (("--bpp", 0.01, RATES[0].name), ("--psnr", 90, RATES[-1].name)):
        out = tmp_path / f"out{option}"
        found = run("compress", busy, "-o", out, option, value)
        assert (found["files"][0]["weights"], found["files"][0]["reached"]) == (name, False)
        assert found["summary"]["missed"] == 1
        assert main(["compress", str(busy), "-o", str(out), option, str(value)]) == 0
        assert "\n1 file misses the target: no packaged rate reaches it" in capsys.readouterr().out


def test_streams_of_another_target_are_not_taken_for_those_of_this_one(
    photographs: Path, tmp_path: Path, run: Run
) -> None:
    out, image = tmp_path / "out", photographs / "flat.png"

    def statuses(*options: object, status: int = 0) -> list[str]:
        files = run("compress", image, "-o", out, *options, status=status)["files"]
        return [entry.get("status") or entry["error"] for entry in files]

    assert statuses("--bpp", 0.6) == ["written"]
    stream = (out / "flat.cdz").read_bytes()
    for other in (["--bpp", 0.61], ["--psnr", 24]):  # which may ask for the same stream, but nobody has seen that
        (reason,) = statuses(*other, status=1)
        assert "exists and was made for another target, --bpp 0.6; pass --overwrite to replace it, or choose" in reason
    assert (out / "flat.cdz").read_bytes() == stream
    assert statuses("--bpp", 0.01, "--overwrite") == ["written"]
    assert "made for another target, --bpp 0.01;" in statuses("--bpp", 0.6, status=1)[0]
    assert statuses("--bpp", 0.01) == ["skipped"]
    times = os.stat(out / "flat.cdz")
    (out / "flat.cdz").write_bytes(stream)  # a good stream, but not the one of the record
    os.utime(out / "flat.cdz", ns=(times.st_atime_ns, times.st_mtime_ns))
    assert "exists and was not made for this target" in statuses("--bpp", 0.01, status=1)[0]
    # weights that are named are compared with the stream alone
    assert statuses("--weights", RATES[2].name) == ["skipped"]
    assert "was made with another codec or other weights" in statuses("--weights", RATES[0].name, status=1)[0]
    (out / RECORD).unlink()
    assert "exists and was not made for this target" in statuses("--bpp", 0.6, status=1)[0]


def test_an_interrupted_run_goes_on(
    photographs: Path, tmp_path: Path, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    args = ("compress", photographs, "-o", out, "--bpp", 0.6)
    with monkeypatch.context() as patch:
        seen: list[bytes] = []

        def interrupted(data: bytes, **options: Any) -> Any:
            seen.append(data)
            if len(seen) == 2:
                raise KeyboardInterrupt
            return decode_image(data, **options)

        patch.setattr(bulk_compress, "decode_image", interrupted)
        found = run(*args, status=130)
        assert found["summary"]["written"] == 1
    with open(out / RECORD, "a", encoding="utf-8") as file:
        file.write('\n{"stream": "flat.cdz", "crc32": 1')  # the process was killed here
    assert [entry["status"] for entry in run(*args)["files"]] == ["skipped", "written", "written"]
    assert [entry["status"] for entry in run(*args)["files"]] == ["skipped"] * 3
    assert (out / "sub" / "calm.cdz").exists()


def test_wrong_targets(photographs: Path, tmp_path: Path, run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    args = ["compress", str(photographs), "-o", str(tmp_path / "out")]
    for option, what in (("--bpp", "bits per pixel, such as 0.4"), ("--psnr", "decibels, such as 28")):
        for value in ("0", "-0.5", "nan", "inf", "much", ""):
            with pytest.raises(SystemExit) as exit_info:
                main([*args, f"{option}={value}"])
            assert exit_info.value.code == 2
            assert f"{option}: {value!r} is not a finite number above 0; pass {what}" in capsys.readouterr().err
    with pytest.raises(SystemExit) as exit_info:
        main([*args, "--bpp", "0.4", "--psnr", "32"])
    assert exit_info.value.code == 2
    found = run(*args, "--bpp", 0.4, "--weights", "DEFAULT", status=2)
    assert "--bpp chooses the weights, and --weights DEFAULT names them; leave one of them out" in found["error"]
    found = run(*args, "--psnr", 32, "--codec", "mbt2018_mean", status=2)
    assert "packaged rates of bmshj2018_hyperprior; leave --codec mbt2018_mean out" in found["error"]
    assert not (tmp_path / "out").exists()


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize("command", ["compress", "decompress"])
def test_progress_has_an_estimate(
    photographs: Path, tmp_path: Path, command: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    source, out = photographs, tmp_path / "out"
    if command == "decompress":
        source = tmp_path / "streams"
        assert main(["compress", str(photographs), "-o", str(source)]) == 0
    terminal = Terminal()
    with monkeypatch.context() as patch:
        patch.setattr(sys, "stderr", terminal)
        assert main([command, str(source), "-o", str(out)]) == 0
    last = terminal.getvalue().split("\r")[-1]
    assert re.search(rf"{command} 3/3 100%\|.*\[\d\d:\d\d<00:00, [\d.e-]+ megapixels/s\]", last)
    some = next(iter(out.glob("*.*")))
    some.unlink()
    terminal = Terminal()
    with monkeypatch.context() as patch:
        patch.setattr(sys, "stderr", terminal)
        assert main([command, str(source), "-o", str(out)]) == 0
    assert f"{command} 3/3 100%" in terminal.getvalue().split("\r")[-1]  # skipped files are not part of the whole
