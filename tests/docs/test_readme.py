"""The README and the changelog say what is so."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path
from typing import Any

import pytest
import torch
import torchvision

import cdzoo
from cdzoo.cli import main

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", README, re.MULTILINE | re.DOTALL)


def test_nothing_is_left_to_fill_in() -> None:
    for file in [ROOT / "README.md", ROOT / "CHANGELOG.md", *(ROOT / "docs").glob("*.md")]:
        assert not re.findall(r"@[A-Z][A-Z0-9_]*@|\bTODO\b|\bTBD\b", file.read_text(encoding="utf-8")), file.name


def test_the_python_examples_run_as_printed(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    labels, pretrained, learned = blocks("python")
    resnet50 = torchvision.models.resnet50
    monkeypatch.setattr(torchvision.models, "resnet50", lambda weights: resnet50(weights=None))  # there is no network
    names: dict[str, Any] = {}
    with torch.no_grad():
        exec(compile(labels, "README.md", "exec"), names)
        exec(compile(pretrained, "README.md", "exec"), names)
        logits = names["logits"]
        exec(compile(learned, "README.md", "exec"), names)
    lines = capsys.readouterr().out.splitlines()
    assert "summer_palace.jpg bell cote" in lines[0]
    assert lines[-1] == "palace"
    assert logits.shape == (2, 1000)
    assert logits.isfinite().all()
    torch.testing.assert_close(logits[0], logits[1])
    assert cdzoo.codecs.read_header(names["streams"][0]).image_size == (320, 320)


def test_it_is_short() -> None:
    assert len(README.splitlines()) < 120


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


def test_the_addresses_and_the_version_are_the_same_everywhere() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    homes = {project["urls"]["Repository"], project["urls"]["Documentation"]}
    files = [*ROOT.glob("*.md"), *ROOT.glob("*.cff"), *ROOT.glob("docs/*.py"), *ROOT.glob("docs/_ext/*.py")]
    texts = [file.read_text(encoding="utf-8") for file in files]
    texts += list(project["urls"].values())
    address = r"https://(?:github\.com/cdzoo/\w+|\w+\.readthedocs\.io)"
    assert {url for text in texts for url in re.findall(address, text)} == homes
    citation = (ROOT / "CITATION.cff").read_text(encoding="utf-8")
    assert re.findall(r"^version: (.*)$", citation, re.MULTILINE) == [cdzoo.__version__]
