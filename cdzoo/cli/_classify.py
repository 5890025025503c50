"""``cdzoo classify``: compressed files to labels; none of them is decoded to pixels."""

from __future__ import annotations

import argparse
import os
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from cdzoo._compose import CompressedDomainModel, compose
from cdzoo._text import class_labels, one_line
from cdzoo.cli._files import Job, add_inputs, check_regular, find_jobs, positive
from cdzoo.cli._load import find_weights, get_device, load, load_codec, shown_source
from cdzoo.cli._report import Report, UsageError, width_x_height
from cdzoo.codecs import MAX_IMAGE_PIXELS, Codec, JPEGWarning, read_header, read_jpeg_header
from cdzoo.data.coefficients import read_upright
from cdzoo.errors import CdzooError, JPEGError, PairingError
from cdzoo.transforms import CoefficientTransform
from cdzoo.weights.enums import WeightsFolder

__all__ = ["CLASSIFIERS", "Classifier", "add_commands", "codec_for", "pair", "top_classes"]


class Classifier(NamedTuple):
    """How files of one kind are classified.

    Attributes:
        logits: contents of a file to logits ``(1, num_classes)`` and facts about the file.
        meta: what the weights say of their classes.
        facts: what the result says of the network.
    """

    logits: Callable[[bytes], tuple[Tensor, dict[str, Any]]]
    meta: dict[str, Any]
    facts: dict[str, Any]


class _WrongInputError(CdzooError, ValueError):
    """The network that was asked for reads something else than files of this kind hold."""


def add_commands(commands: Any) -> None:
    """Add the parser."""
    parser = commands.add_parser(
        "classify",
        help="what compressed files show, without decoding them to pixels",
        description="Classify JPEG files from their DCT coefficients, at their own size or a power of two below it, "
        "and .cdz streams from their latents: the pixels are not rebuilt.",
    )
    parser.add_argument("--lenient", action="store_true", help="classify damaged JPEG files by what is left of them")
    add_inputs(parser, "FILE", "a JPEG file, a .cdz stream, or a folder that is searched for both")
    parser.add_argument(
        "--model", metavar="NAME", help="network (jpeg_resnet18 or fa_cresnet39, or what the weights are for)"
    )
    parser.add_argument("--weights", metavar="WEIGHTS", default="DEFAULT", help="name, hf://owner/repo or folder")
    parser.add_argument("--codec", metavar="NAME|FOLDER", help="codec, by default the one that the weights belong to")
    parser.add_argument("--top", type=positive, default=5, metavar="N", help="how many classes to show (5)")
    parser.set_defaults(run=classify, render=_render)


def codec_for(given: str | None) -> Codec | None:
    """The codec that ``--codec`` names: a builder (its default weights), ``Enum.MEMBER``, ``hf://...`` or a folder."""
    if given is None:
        return None
    if given.startswith("hf://") or os.path.isdir(given) or "." in given or os.sep in given:
        return load_codec(None, given)
    return load_codec(given, "DEFAULT")


def pair(args: argparse.Namespace) -> tuple[CompressedDomainModel, dict[str, Any]]:
    """The network of ``--model`` and ``--weights`` with its codec (or ``--codec``'s), and facts about both."""
    device = get_device(args.device)
    source = find_weights(args.model, args.weights, default="fa_cresnet39")
    _check_is_network(source)
    if args.codec is None and not source.codec_entry:
        raise _WrongInputError(
            f"{source} are weights of {source.config['builder']}, which name no codec whose latents they read; leave "
            "--model and --weights out, or name the codec with --codec."
        )
    # the codec first: it is what is most often missing
    codec = codec_for(args.codec) or source.build_codec()
    network = compose(codec, load(source)).to(device).eval()
    identity = {"name": codec.name, "fingerprint": codec.fingerprint}
    return network, {"model": shown_source(source), "codec": identity}


def _check_is_network(source: WeightsFolder) -> None:
    if source.config["kind"] != "model":
        raise UsageError(f"weights {source} are for {source.config['builder']}, which is a codec; name a network's.")


def _latent_classifier(args: argparse.Namespace) -> Classifier:
    network, facts = pair(args)

    def logits(data: bytes) -> tuple[Tensor, dict[str, Any]]:
        with torch.no_grad():
            scores = network.from_streams([data])
        header = read_header(data)
        return scores, {"image_size": list(header.image_size), "bpp": header.bpp}

    return Classifier(logits, getattr(network.model, "meta", {}), facts)


_OTHER_FORMATS = {
    b"\x89PNG": "PNG",
    b"GIF8": "GIF",
    b"RIFF": "WebP",
    b"BM": "BMP",
    b"II*\0": "TIFF",
    b"MM\0*": "TIFF",
    b"\0\0\0\x0cjP  ": "JPEG 2000",
    b"\xff\x4f\xff\x51": "JPEG 2000",
    b"\0\0\0\x0cJXL ": "JPEG XL",
    b"\xff\x0a": "JPEG XL",
}
_NOT_PILLOWS = ("HEIF", "JPEG XL")


def _check_format(data: bytes) -> None:
    kind = next((name for magic, name in _OTHER_FORMATS.items() if data.startswith(magic)), None)
    if data[4:8] == b"ftyp":
        kind = "HEIF" if data[8:11] in (b"hei", b"hev") else {b"avif": "AVIF", b"mif1": "HEIF"}.get(data[8:12])
    if kind is not None:
        what = f"{'an' if kind == 'AVIF' else 'a'} {kind} file, whatever it is called"
        first = "convert it to PNG, " if kind in _NOT_PILLOWS else ""
        raise ValueError(f"{what}; {first}run 'cdzoo compress' on it and classify the .cdz.")


def _coefficient_classifier(args: argparse.Namespace) -> Classifier:
    from cdzoo.models.jpeg_resnet import JPEGClassifier

    device = get_device(args.device)
    source = find_weights(args.model, args.weights, default="jpeg_resnet18")
    _check_is_network(source)
    network = load(source).to(device)
    if not isinstance(network, JPEGClassifier):
        raise _WrongInputError(
            f"{source} are weights of {source.config['builder']}, which does not read JPEG coefficients; leave --model "
            "and --weights out, or run 'cdzoo compress' on images first and classify the .cdz."
        )
    saved = source.transforms
    transforms = saved if isinstance(saved, CoefficientTransform) else CoefficientTransform()

    def logits(data: bytes) -> tuple[Tensor, dict[str, Any]]:
        _check_format(data)
        facts: dict[str, Any] = {}
        with warnings.catch_warnings(record=True) as damage:
            warnings.simplefilter("always", JPEGWarning)
            coefficients = read_upright(data, max_pixels=MAX_IMAGE_PIXELS, strict=not args.lenient)
        found = [w.message for w in damage if isinstance(w.message, JPEGWarning)]
        if found:
            facts["damage"] = "; ".join(warning.reason for warning in found)
        if missing := sum(warning.num_missing for warning in found):
            facts["missing_blocks"] = missing
        header = read_jpeg_header(data, strict=not args.lenient)
        height, width = header.image_size
        if (
            header.orientation >= 5 and coefficients.image_size != header.image_size
        ):  # it was turned, and may be trimmed
            height, width = width, height
        reduced = transforms(coefficients)
        with torch.no_grad():
            scores = network(reduced.to(device))
        facts |= {"image_size": [height, width], "bpp": 8 * len(data) / (height * width)}
        return scores, {**facts, "read_size": list(reduced.image_size)}

    return Classifier(logits, getattr(network, "meta", {}), {"jpeg_model": shown_source(source)})


CLASSIFIERS: dict[str, Callable[[argparse.Namespace], Classifier]] = {
    ".cdz": _latent_classifier,
    **dict.fromkeys((".jpg", ".jpeg", ".jpe", ".jfif"), _coefficient_classifier),
}
"""Suffix of a file -> how such files are classified; a way is prepared once, if a file needs it."""


def classify(args: argparse.Namespace, report: Report) -> None:
    """Run ``cdzoo classify``."""
    jobs = find_jobs(args.inputs, CLASSIFIERS.keys(), report)
    needed = {prepare for job in jobs if (prepare := CLASSIFIERS.get(job.source.suffix.lower())) is not None}
    if args.codec is not None and _latent_classifier not in needed:
        codec_for(args.codec)  # a wrong name should not go unnoticed
        report.note("--codec changes nothing: there is no .cdz stream among the files")
    prepared: dict[Callable[[argparse.Namespace], Classifier], Classifier | CdzooError] = {}
    for prepare in needed:
        try:
            prepared[prepare] = classifier = prepare(args)
            report.facts |= classifier.facts
        except (_WrongInputError, PairingError) as error:  # concerns files of this kind only
            if isinstance(error, PairingError) and len(needed) == 1:
                raise
            prepared[prepare] = error

    def work(job: Job) -> dict[str, Any]:
        os.stat(job.source)  # that a file does not exist is worth more than a word about its suffix
        prepare = CLASSIFIERS.get(job.source.suffix.lower())
        if prepare is None:
            raise ValueError(
                f"{job.source.suffix or 'no suffix'} is not among what is classified ({', '.join(CLASSIFIERS)}); "
                "run 'cdzoo compress' on images first, and classify the .cdz."
            )
        classifier = prepared[prepare]
        if isinstance(classifier, CdzooError):
            raise classifier
        check_regular(job.source)
        try:
            scores, facts = classifier.logits(job.source.read_bytes())
        except JPEGError as error:
            raise error.named(None) from error
        return {**facts, "top": top_classes(scores, classifier.meta, args.top)}

    report.each(jobs, _source, work)


def top_classes(logits: Tensor, meta: dict[str, Any], count: int) -> list[dict[str, Any]]:
    """The most probable classes, best first: their number, label, identifier where there is one, and probability.

    Args:
        logits: ``(1, num_classes)``.
        meta: what the weights say of their classes.
        count: how many; fewer where the network knows fewer.

    Raises:
        ValueError: logits of another shape, or not finite.
    """
    if logits.dim() != 2 or len(logits) != 1 or not logits.isfinite().all():
        raise ValueError(f"no classification: the network returned {tuple(logits.shape)}, not finite (1, num_classes)")
    labels = class_labels(meta, logits.shape[1])
    best = logits[0].double().softmax(0).topk(min(count, logits.shape[1]))
    return [
        {"class": int(i), **labels[int(i)], "probability": float(p)}
        for p, i in zip(best.values, best.indices, strict=True)
    ]


def rank_lines(top: list[dict[str, Any]]) -> list[str]:
    """A classification as lines of text."""
    return [
        f"{rank:4}  {100 * entry['probability']:5.1f} %  {entry['label']}"
        + (f" ({entry['id']})" if "id" in entry else "")
        for rank, entry in enumerate(top, 1)
    ]


def _render(report: Report) -> str:
    lines = []
    for entry in report.good():
        facts = [width_x_height(entry["image_size"]), f"{entry['bpp']:.4f} bpp"]
        if entry.get("missing_blocks"):
            facts.append(f"{entry['missing_blocks']} blocks missing")
        elif "damage" in entry:
            facts.append("damaged")
        if entry.get("read_size", entry["image_size"]) != entry["image_size"]:
            facts.append(f"read at {width_x_height(entry['read_size'])}")
        lines += ["  ".join([one_line(entry["file"]), *facts]), *rank_lines(entry["top"])]
    return "\n".join(lines)


def _source(job: Job) -> Path:
    return job.source
