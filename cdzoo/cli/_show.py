"""``cdzoo list`` and ``cdzoo info``: names of codecs and models, and facts about one of them."""

from __future__ import annotations

import argparse
import inspect
import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cdzoo._files import read_file
from cdzoo._text import one_line
from cdzoo.cli._report import Report, UsageError, table, width_x_height

if TYPE_CHECKING:
    from cdzoo._registry import Entry
    from cdzoo.coding.cdz_format import StreamHeader
    from cdzoo.weights.folder import WeightsFolder

__all__ = ["add_commands"]


def add_commands(commands: Any) -> None:
    """Add the two parsers."""
    parser = commands.add_parser(
        "list",
        help="list codecs and models",
        description="List codecs and models. stride: pixels per latent sample. scales: standard deviations from a "
        "hyperprior, which some codecs give and some networks need.",
    )
    parser.add_argument(
        "pattern",
        nargs="?",
        default="*",
        metavar="PATTERN",
        help="a part of the name, such as resnet, or a pattern, such as 'resnet*'",
    )
    parser.add_argument("--pretrained", action="store_true", help="only those with pretrained weights")
    parser.add_argument("--kind", choices=("codecs", "models"), help="only codecs, or only models")
    parser.add_argument("--codec", metavar="NAME", help="only this codec and the models that can read its latents")
    parser.add_argument("--json", action="store_true", help="print one JSON document")
    parser.set_defaults(run=list_names, render=_render_list)
    parser = commands.add_parser(
        "info",
        help="describe a codec, a model, weights, or a .cdz or JPEG file",
        description="Describe a codec or model by its builder's name, a set of weights, or a .cdz or JPEG file.",
    )
    parser.add_argument(
        "name", metavar="NAME", help="name, Enum.MEMBER, hf://owner/repo, folder of weights, .cdz or JPEG file"
    )
    parser.add_argument("--json", action="store_true", help="print one JSON document")
    parser.set_defaults(run=info, render=_render_info)


# -- list --------------------------------------------------------------------------------------------------------


def list_names(args: argparse.Namespace, report: Report) -> None:
    """Run ``cdzoo list``."""
    from cdzoo._registry import unknown_name
    from cdzoo.zoo import list_codecs, list_models

    if args.codec not in (None, *list_codecs()):
        raise UsageError(str(unknown_name("codec", args.codec, list_codecs())))
    pattern = args.pattern if set(args.pattern) & set("*?[") else f"*{args.pattern}*"
    codecs = [n for n in list_codecs(pattern, pretrained=args.pretrained) if args.codec in (None, n)]
    models = list_models(pattern, pretrained=args.pretrained, codec=args.codec)
    for kind, names in (("codecs", codecs), ("models", models)):
        if args.kind in (None, kind):
            report.facts[kind] = [_entry(name) for name in names]


def _entry(name: str) -> dict[str, Any]:
    from cdzoo._registry import find_entry
    from cdzoo.weights.resolve import members
    from cdzoo.zoo import latent_interface

    latents = latent_interface(name)
    return {
        "name": name,
        "stride": None if latents is None else latents.stride,
        "scales": None if latents is None else latents.scales,
        "weights": list(members(name)),
        "summary": _summary(find_entry(name)),
    }


def _render_list(report: Report) -> str:
    entries = [(entry, kind) for kind, entries in report.facts.items() for entry in entries]
    rows = [
        (
            entry["name"],
            kind.removesuffix("s"),
            str(entry["stride"] or "-"),
            ("gives" if kind == "codecs" else "needs") if entry["scales"] else "-",
            "yes" if entry["weights"] else "-",
            entry["summary"],
        )
        for entry, kind in entries
    ]
    title, *lines = table(("name", "kind", ">stride", "scales", "weights", "summary"), rows).splitlines()
    if all(entry["weights"] for entry, _ in entries):
        lines = [f"{line}\n    {', '.join(entry['weights'])}" for line, (entry, _) in zip(lines, entries, strict=True)]
    return "\n".join([title, *lines])


# -- info --------------------------------------------------------------------------------------------------------


def info(args: argparse.Namespace, report: Report) -> None:
    """Run ``cdzoo info``."""
    name: str = args.name
    if not name.isidentifier() and os.path.isfile(name):  # builders are functions: no name of theirs is hidden
        report.facts |= _file_facts(Path(name))  # without PyTorch
        return

    from cdzoo._registry import unknown_name
    from cdzoo.weights.resolve import find_weights
    from cdzoo.zoo import list_codecs, list_models

    known = [*list_codecs(), *list_models()]
    if name in known:
        report.facts |= _builder_facts(name)
    elif os.path.isdir(name) or name.startswith("hf://"):
        report.facts |= _weights_facts(find_weights(name))
    elif os.path.exists(name):
        report.facts |= _file_facts(Path(name))
    elif "." in name and name.partition(".")[0].endswith("_Weights"):
        try:
            report.facts |= _weights_facts(find_weights(name))
        except ValueError as error:
            raise UsageError(str(error)) from error
    elif os.path.splitext(name)[1] or os.sep in name:
        raise FileNotFoundError(2, "No such file or folder", name)
    else:
        raise UsageError(str(unknown_name("codec, model, weights or file", name, known)))


def _builder_facts(name: str) -> dict[str, Any]:
    from cdzoo._registry import find_entry
    from cdzoo.coding.base import Codec
    from cdzoo.weights.resolve import members

    entry = find_entry(name)
    module = entry.builder()
    facts: dict[str, Any] = {
        "name": name,
        "kind": "codec" if isinstance(module, Codec) else "model",
        "summary": _summary(entry),
        "parameters": sum(p.numel() for p in module.parameters()),
        "arguments": {"weights": None, **{n: entry.defaults.get(n) for n in entry.options}},
    }
    for attribute in ("latent_channels", "stride", "has_scales", "in_channels", "latent_stride", "uses_scales"):
        value = getattr(module, attribute, None)
        if isinstance(value, int):
            facts[attribute] = value
    facts["weights"] = {member.name: _weights_facts(member.source) for member in members(name).values()}
    return facts


def _weights_facts(source: WeightsFolder | None) -> dict[str, Any]:
    assert source is not None
    config = source.config
    kept = (
        "kind",
        "builder",
        "arguments",
        "fingerprint",
        "codec",
        "transforms",
        "sha256",
        "repo_id",
        "revision",
        "meta",
    )
    return {"weights": str(source), **{key: config[key] for key in kept if config.get(key) is not None}}


def _file_facts(path: Path) -> dict[str, Any]:
    data = read_file(path)
    return _jpeg_facts(path, data) if data.startswith(b"\xff\xd8") else _stream_facts(path, data)


def _jpeg_facts(path: Path, data: bytes) -> dict[str, Any]:
    from cdzoo.jpeg._sources import NamedBytes
    from cdzoo.jpeg.files import read_jpeg_header

    header = read_jpeg_header(NamedBytes(data, os.fspath(path)))
    height, width = header.image_size
    return {
        "file": os.fspath(path),
        "format": f"JPEG, {header.kind}",
        "image_size": [height, width],
        "orientation": header.orientation,
        "color_space": header.color_space,
        "sampling": [list(factors) for factors in header.sampling],
        "blocks": [list(blocks) for blocks in header.block_sizes],
        "restart_interval": header.restart_interval,
        "exif_bytes": len(header.exif or b""),
        "icc_profile_bytes": len(header.icc_profile or b""),
        "bytes": len(data),
        "bpp": 8 * len(data) / (height * width),
    }


def _stream_facts(path: Path, data: bytes) -> dict[str, Any]:
    from cdzoo.coding.cdz_format import read_header

    header = read_header(data, max_pixels=None)
    return {
        "file": os.fspath(path),
        "codec": header.codec,
        "fingerprint": header.fingerprint,
        "weights": _writer(header),
        "image_size": list(header.image_size),
        "bytes": header.num_bytes,
        "header_bytes": header.header_bytes,
        "part_bytes": list(header.part_lengths),
        "bpp": header.bpp,
        "payload_bpp": header.payload_bpp,
    }


def _writer(header: StreamHeader) -> str | None:
    """The weights of the codec that wrote a stream, as an enum member; ``None`` if no enum has them."""
    from cdzoo.coding.cdz_format import CODEC_NUMBERS
    from cdzoo.weights.packaged import packaged_codec_weights

    if header.codec in CODEC_NUMBERS:
        return packaged_codec_weights(header.fingerprint)
    from cdzoo.weights.resolve import member_with  # another package may have registered the codec

    member = member_with(header.fingerprint, header.codec)
    return None if member is None else str(member)


def _render_info(report: Report) -> str:
    facts = report.facts
    if "file" not in facts:
        return "\n".join(_lines(facts))
    shown = {
        **facts,
        "file": one_line(facts["file"]),
        "image_size": f"{width_x_height(facts['image_size'])} (width x height)",
    }
    if "format" in facts:
        for key in ("sampling", "blocks"):
            shown[key] = ", ".join(width_x_height(pair) for pair in facts[key])
        shown["bpp"] = f"{facts['bpp']:.4f}"
        return "\n".join(_lines(shown))
    shown["weights"] = facts["weights"] or "none that come with the package"
    shown["bpp"] = f"{facts['bpp']:.4f} with the header, {facts['payload_bpp']:.4f} without"
    return "\n".join(_lines({key: value for key, value in shown.items() if key != "payload_bpp"}))


def _lines(facts: dict[str, Any], indent: str = "") -> list[str]:
    """Nested facts as indented lines."""
    width = max((len(key) for key in facts), default=0)
    lines = []
    for key, value in facts.items():
        if isinstance(value, dict) and value:
            lines += [f"{indent}{key}", *_lines(value, indent + "  ")]
        else:
            lines.append(f"{indent}{key.ljust(width)}  {_shown(value)}")
    return lines


def _shown(value: Any) -> str:
    if isinstance(value, bool) or value is None or value in ({}, []):
        return {True: "yes", False: "no"}.get(value, "-") if isinstance(value, bool) else "-"
    if isinstance(value, int):
        return f"{value:,}"
    if isinstance(value, list | tuple):
        listed = [v if isinstance(v, str) else json.dumps(v) for v in value]
        return ", ".join(listed[:12]) + (f", ... ({len(listed)} in all)" if len(listed) > 12 else "")
    return str(value)


# -- shared ------------------------------------------------------------------------------------------------------


def _summary(entry: Entry) -> str:
    return (inspect.getdoc(entry.builder) or "").partition("\n")[0].rstrip(".").replace("``", "")
