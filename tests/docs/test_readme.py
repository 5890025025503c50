"""The README and the changelog say what is so."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch

import cdzoo
from cdzoo.cli import main
from cdzoo.demo import PHOTO, load_photo

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", README, re.MULTILINE | re.DOTALL)


def test_nothing_is_left_to_fill_in() -> None:
    for file in [ROOT / "README.md", ROOT / "CHANGELOG.md", *(ROOT / "docs").glob("*.md")]:
        assert not re.findall(r"@[A-Z][A-Z0-9_]*@|\bTODO\b|\bTBD\b", file.read_text(encoding="utf-8")), file.name


def test_the_python_example_runs_as_written() -> None:
    example, _ = blocks("python")
    names: dict[str, object] = {"images": load_photo(224)}
    with torch.no_grad():
        exec(compile(example, "README.md", "exec"), names)
    streams, logits = names["streams"], names["logits"]
    assert isinstance(streams, list)
    assert isinstance(logits, torch.Tensor)
    assert cdzoo.codecs.read_header(streams[0]).image_size == (224, 224)
    assert logits.shape == (1, 10)
    assert logits.isfinite().all()


def test_the_jpeg_example_runs_as_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _, example = blocks("python")
    for name in ("photo.jpg", "a.jpg", "b.jpg"):
        (tmp_path / name).write_bytes(PHOTO.read_bytes())
    monkeypatch.chdir(tmp_path)
    network = torch.nn.Sequential(torch.nn.Conv2d(3, 8, 7, stride=2, padding=3), torch.nn.AdaptiveAvgPool2d(1))
    names: dict[str, object] = {"network": network.eval()}
    exec(compile(example, "README.md", "exec"), names)
    logits = names["logits"]
    assert isinstance(logits, torch.Tensor)
    assert logits.shape == (2, 8, 1, 1)
    assert logits.isfinite().all()


def test_every_command_exists(capsys: pytest.CaptureFixture[str]) -> None:
    commands = re.findall(r"(?:^|/|&& )cdzoo (\w+)", "\n".join(blocks("bash")), re.MULTILINE)
    assert {"compress", "classify", "info", "decompress", "list", "demo"} <= set(commands)
    for command in sorted(set(commands)):
        with pytest.raises(SystemExit) as end:
            main([command, "--help"])
        assert end.value.code == 0
        assert f"cdzoo {command}" in capsys.readouterr().out


def test_every_option_exists(capsys: pytest.CaptureFixture[str]) -> None:
    lines = [line.split("#")[0] for line in "\n".join(blocks("bash")).splitlines() if line.startswith("cdzoo ")]
    assert lines
    for command, *words in (line.split()[1:] for line in lines):
        with pytest.raises(SystemExit):
            main([command, "--help"])
        text = capsys.readouterr().out
        assert all(re.search(rf"(?<!\S){word}\b", text) for word in words if word.startswith("-")), (command, words)


def test_every_relative_link_leads_somewhere() -> None:
    links = re.findall(r"\]\((?!https?://|#)([^)#]+)", README)
    assert links
    assert [link for link in links if not (ROOT / link).exists()] == []


def test_the_python_names_of_the_table_exist() -> None:
    for module, names in re.findall(r"^\| `(cdzoo[\w.]*)`[^|]*\|(.*)\|$", README, re.MULTILINE):
        package = __import__(module, fromlist=["*"])
        known = set(dir(package)) | set(cdzoo.list_codecs()) | set(cdzoo.list_models())
        assert [name for name in re.findall(r"`(\w+)`", names) if name not in known] == [], module


def test_the_changelog_mentions_this_version() -> None:
    changelog = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    assert re.search(rf"^## \[?{re.escape(cdzoo.__version__)}\b", changelog, re.MULTILINE)
