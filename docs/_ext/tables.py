"""Tables that the registry fills in: codecs, models, weights; and the command line's own help."""

from __future__ import annotations

import argparse
import inspect
import json
import os
import re
import sys
from collections.abc import Callable, Iterator
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import torch
from docutils import nodes
from sphinx.application import Sphinx
from sphinx.util.docutils import SphinxDirective

import cdzoo
from cdzoo.codecs import Codec
from cdzoo.models import Segmenter
from cdzoo.weights.enums import WeightsEnum
from cdzoo.zoo import get_builder

EXAMPLES = Path(__file__).parents[2] / "examples"
BENCHMARKS = Path(__file__).parents[2] / "benchmarks" / "results.json"


def pipe_table(header: list[str], rows: list[list[str]], *, right: tuple[int, ...] = ()) -> str:
    """A Markdown table; the columns in ``right`` are aligned there."""
    rule = ["---:" if column in right else "---" for column in range(len(header))]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in [header, rule, *rows])


def built(name: str) -> torch.nn.Module:
    """A module at its default size, without memory for its parameters."""
    with torch.device("meta"):
        return get_builder(name)()


def parameters(module: torch.nn.Module) -> str:
    """Their number."""
    return f"{sum(p.numel() for p in module.parameters()):,}"


def source(builder: Callable[..., Any]) -> str:
    """Whose network it is: the authors whom the builder's docstring names first, or its file's."""
    text = f"{builder.__doc__} {sys.modules[builder.__module__].__doc__}"
    named = re.search(r"[A-Z]\w+ (?:et al\.|& [A-Z]\w+)", " ".join(text.split()))
    return named[0].replace(" ", "\u00a0") if named else ""


def members(name: str) -> list[WeightsEnum]:
    """The published weights of a builder, each once."""
    try:
        return list(cdzoo.get_model_weights(name))
    except ValueError:
        return []


def broken(name: str) -> str:
    """``Enum.MEMBER`` on two lines."""
    enum, _, member = name.partition(".")
    return f"`{enum}.`<br>`{member}`"


def codec_rows() -> Iterator[list[str]]:
    """One for each codec."""
    for name in cdzoo.list_codecs():
        codec = built(name)
        assert isinstance(codec, Codec)
        scales = "y_hat, scales" if codec.has_scales else "y_hat"
        weights = ", ".join(f"`{member.name}`" for member in members(name)) or "-"
        yield [
            f"{{py:func}}`~cdzoo.codecs.{name}`", source(get_builder(name)), str(codec.stride),
            str(codec.latent_channels), scales, parameters(codec), weights,
        ]  # fmt: skip


def reads(module: torch.nn.Module) -> tuple[str, str]:
    """The input of a network, and the number of pixels between two samples of it."""
    stride = getattr(module, "latent_stride", None)
    if stride is None and (hasattr(module, "entrance") or hasattr(module, "reads_blocks")):
        return "JPEG coefficients", "8, 16"
    if hasattr(module, "aggregation") or hasattr(module, "cls_token"):
        return f"RGB, or latents ({module.in_channels})", str(stride)
    if stride is None:
        return "RGB", "1"
    scales = " and scales" if getattr(module, "uses_scales", False) else ""
    return f"latents{scales} ({module.in_channels})", str(stride)


def model_rows() -> Iterator[list[str]]:
    """One for each model."""
    for name in cdzoo.list_models():
        model = built(name)
        what, stride = reads(model)
        task = "segmentation" if isinstance(model, Segmenter) else "classification"
        weights = ", ".join(f"`{member.name}`" for member in members(name)) or "-"
        yield [
            f"{{py:func}}`~cdzoo.models.{name}`", source(get_builder(name)), task, what, stride, parameters(model),
            weights,
        ]  # fmt: skip


def weights_rows(*patterns: str) -> Iterator[list[str]]:
    """One for each published set of weights, of builders that match one of the patterns.

    Of the card's measurements the first one is shown, on the first data set.
    """
    for name in [*cdzoo.list_codecs(pretrained=True), *cdzoo.list_models(pretrained=True)]:
        for member in members(name) if any(fnmatch(name, pattern) for pattern in patterns or "*") else ():
            meta, folder = member.meta, member.source
            on, values = next(iter(meta["metrics"].items()))
            found = [metric for metric in ("top-1 (%)", "mIoU (%)", "PSNR (dB)") if metric in values]
            metric, _, unit = found[0].removesuffix(")").partition(" (")
            size = os.path.getsize(folder.path / "model.safetensors") / 1e6
            belongs = (meta.get("codec") or {}).get("weights")
            yield [
                broken(str(member)),
                {"PSNR": "codec", "mIoU": "segmentation"}.get(metric, f"{len(meta.get('classes') or [])} classes"),
                ", ".join(meta["datasets"]),
                f"{metric} {values[found[0]]:.1f}\u00a0{unit}<br>{on}",
                f"{values['bits per pixel']:.2f}" if "bits per pixel" in values else "",
                f"{size:.1f}",
                broken(belongs) if belongs else "",
                str(meta["license"]),
            ]


FIGURES = {
    "bpp_real": "{:.3f} bits per pixel in files", "psnr": "{:.2f} dB", "ms_ssim": "MS-SSIM {:.3f}",
    "top1": "top-1 {:.1f} %", "top5": "top-5 {:.1f} %", "miou": "mean IoU {:.1f} %", "measured_on": "on {}",
}  # fmt: skip
LEFT_OUT = re.compile(r" --(?:out|cache|data|test|codec|checkpoint-minutes|evaluate-every) \S+")


def recipe_rows(*patterns: str) -> Iterator[list[str]]:
    """One for each result of a recipe whose file's name matches."""
    for pattern in patterns:
        for file in sorted((EXAMPLES / "recipes" / "results").glob(f"{pattern}.json")):
            result = json.loads(file.read_text(encoding="utf-8"))
            figures = [text.format(result["metrics"][m]) for m, text in FIGURES.items() if m in result["metrics"]]
            yield [f"`{LEFT_OUT.sub('', result['command'])}`", f"{result['minutes']:g}", ", ".join(figures)]


def billion_rows() -> Iterator[list[str]]:
    """Costs of a billion images, from the rows of bytes to labels on one thread, in the largest batch measured."""
    measured = json.loads(BENCHMARKS.read_text(encoding="utf-8"))["rows"]
    peers = {"jpeg-to-labels": ("JPEG", "torchvision"), "cdz-to-labels": (".cdz", "CompressAI")}
    largest: dict[tuple[str, str, int], dict[str, Any]] = {}
    for row in measured:
        case = row["case"]
        if row["group"] in peers and case["threads"] == 1:
            key = row["group"], case["network"], case["size"]
            if key not in largest or case["batch"] > largest[key]["case"]["batch"]:
                largest[key] = row
    for (group, network, size), row in largest.items():
        kind, peer = peers[group]
        case, theirs = row["case"], row["peers"][peer]["value"]
        hours = [1e9 * ms / case["batch"] / 3.6e6 for ms in (row["ours"], theirs)]
        terabytes = 1e9 * size * size * case["bits per pixel"] / 8 / 1e12
        yield [
            f"{kind} to {network}" if kind == ".cdz" else f"{kind} to jpeg_resnet18, {network}", f"{size}x{size}",
            f"{terabytes:,.1f}", f"{hours[0]:,.0f}", f"{hours[1]:,.0f}", f"{hours[1] - hours[0]:+,.0f}",
        ]  # fmt: skip


TABLES: dict[str, tuple[list[str], Callable[..., Iterator[list[str]]], tuple[int, ...]]] = {
    "codec-table": (
        ["codec", "from", "stride", "channels", "latents hold", "parameters", "weights"], codec_rows, (2, 3, 5),
    ),
    "model-table": (
        ["model", "from", "task", "reads", "stride", "parameters", "weights"], model_rows, (4, 5),
    ),
    "weights-table": (
        ["weights", "task", "trained on", "measured", "bits per pixel", "MB", "codec", "license"], weights_rows, (4, 5),
    ),
    "billion-table": (
        ["from", "pixels", "TB to read", "core hours", "core hours, decoded first", "saved"], billion_rows, (2, 3, 4, 5)
    ),
    "recipe-results": (["run", "minutes", "result"], recipe_rows, (1,)),
}  # fmt: skip


class Table(SphinxDirective):
    """``{codec-table}``, ``{model-table}``, ``{weights-table} PATTERNS``, ``{billion-table}`` and so on."""

    optional_arguments = 1
    final_argument_whitespace = True

    def run(self) -> list[nodes.Node]:
        """The table."""
        self.env.note_reread()  # what the registry holds changes without the page
        header, rows, right = TABLES[self.name]
        patterns = self.arguments[0].replace(",", " ").split() if self.arguments else []
        return self.parse_text_to_nodes(pipe_table(header, list(rows(*patterns)), right=right))


class CommandHelp(SphinxDirective):
    """``{command-help}``: what ``cdzoo COMMAND --help`` prints, for every command."""

    def run(self) -> list[nodes.Node]:
        """A section for each."""
        from cdzoo.cli import _parser

        self.env.note_reread()
        os.environ["COLUMNS"] = "88"
        text = "\n".join(_sections(_parser()))
        return self.parse_text_to_nodes(text, allow_section_headings=True)


def _sections(parser: argparse.ArgumentParser) -> Iterator[str]:
    commands = [action for action in parser._actions if isinstance(action, argparse._SubParsersAction)]
    yield f"\n## `{parser.prog}`\n\n```text\n{_plain(parser).format_help()}```\n"
    for action in commands:
        for command in action.choices.values():
            yield from _sections(command)


def _plain(parser: argparse.ArgumentParser) -> argparse.ArgumentParser:
    if "color" in inspect.signature(argparse.ArgumentParser).parameters:
        parser.color = False
    return parser


def setup(app: Sphinx) -> dict[str, Any]:
    """Register with Sphinx."""
    for name in TABLES:
        app.add_directive(name, Table)
    app.add_directive("command-help", CommandHelp)
    return {"parallel_read_safe": True}
