"""``cdzoo demo``: compress a photograph and classify it from its stream."""

from __future__ import annotations

import argparse
import os
import signal
from typing import Any

from cdzoo.cli._classify import add_network, label_entries, label_lines
from cdzoo.cli._files import make_folder, positive
from cdzoo.cli._report import Report, UsageError, stream_sizes, width_x_height
from cdzoo.cli._targets import CODEC

__all__ = ["add_commands"]


def add_commands(commands: Any) -> None:
    """Add the parser."""
    parser = commands.add_parser(
        "demo",
        help="classify a photograph from its JPEG file, and from its compressed stream",
        description="Classify a photograph that comes with the package from its JPEG file's coefficients. Compress it, "
        "classify it from its stream, decode it once so that you can see it, and draw a picture of all three.",
    )
    parser.add_argument("-o", "--output", metavar="DIR", default="cdzoo_demo", help="folder for the files (cdzoo_demo)")
    add_network(parser, f"network over latents (the packaged one for {CODEC}, or the network of the weights)")
    parser.add_argument("--size", type=positive, metavar="PIXELS", help="resize the center square to this side")
    parser.add_argument("--device", default="cpu", help="device of the networks: cpu (default), cuda, ...")
    parser.add_argument("--serve", action="store_true", help="serve a page for browsers instead; needs cdzoo[app]")
    parser.add_argument("--host", default="127.0.0.1", help="with --serve: address to listen on (127.0.0.1)")
    parser.add_argument("--port", type=positive, default=7860, metavar="N", help="with --serve: port (7860)")
    parser.add_argument("--json", action="store_true", help="print one JSON document")
    parser.set_defaults(run=demo, render=_render)


def demo(args: argparse.Namespace, report: Report) -> None:
    """Run ``cdzoo demo``."""
    if args.serve:
        _serve(args)
        return
    from cdzoo._compose import CompressedDomainModel
    from cdzoo.bulk.classify import classify
    from cdzoo.bulk.networks import STREAM_MODELS, default_network, find_network
    from cdzoo.cli._load import get_device, load_given_codec
    from cdzoo.demo import PHOTO, run_demo
    from cdzoo.labels import top_labels

    device, codec = get_device(args.device), load_given_codec(args.codec)
    try:
        model = STREAM_MODELS[CODEC] if args.model is None and args.weights is None else args.model
        found = find_network(model, args.weights, codec)
    except ValueError as error:
        raise UsageError(str(error)) from error
    network = found.module.to(device).eval()
    if not isinstance(network, CompressedDomainModel):
        raise UsageError(f"{found.facts['builder']} does not read latents; name a network over latents, or its --codec")
    of_jpeg = default_network("jpeg")
    (labeled,) = classify(PHOTO, model=of_jpeg.module.to(device))
    result = run_demo(network, make_folder(args.output), size=args.size)
    report.facts |= {
        "jpeg": {"network": of_jpeg.facts, "top": label_entries(labeled.classes)},
        "network": found.facts,
        "stream": os.fspath(result.stream),
        "picture": os.fspath(result.picture),
        **stream_sizes(result.header),
        "psnr": result.psnr,
        "top": label_entries(top_labels(result.logits[0].float().cpu(), getattr(network.model, "meta", None) or {}, 5)),
        "logits_seconds": result.logits_seconds,
        "pixels_seconds": result.pixels_seconds,
        "num_threads": result.num_threads,
        "device": args.device,
    }


def _serve(args: argparse.Namespace) -> None:
    from cdzoo.app import serve

    if args.model or args.weights or args.codec or args.size:
        raise UsageError("--serve shows the packaged networks: leave --model, --weights, --codec and --size out")
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # so that uploads are deleted
    serve(args.host, args.port)


def _render(report: Report) -> str:
    facts = report.facts
    if "stream" not in facts:
        return ""
    of_jpeg = facts["jpeg"]
    threads = f"{facts['num_threads']} thread{'s' if facts['num_threads'] > 1 else ''}"
    return "\n".join(
        [
            f"JPEG file     {_named(of_jpeg['network'])}, from its coefficients, without decoding pixels:",
            *label_lines(of_jpeg["top"]),
            f"photograph    {width_x_height(facts['image_size'])} pixels, {facts['bytes']:,} bytes as a .cdz stream",
            f"rate          {facts['bpp']:.4f} bpp with the header, {facts['payload_bpp']:.4f} without",
            f"quality       PSNR {facts['psnr']:.2f} dB of the decoded photograph",
            f"network       {_named(facts['network'])}, from the stream, without decoding pixels:",
            *label_lines(facts["top"]),
            f"time          {1000 * facts['logits_seconds']:.1f} ms  stream -> latent -> logits",
            f"              {1000 * facts['pixels_seconds']:.1f} ms  stream -> latent -> pixels",
            f"              median of five runs after a warm-up, {facts['device']}, {threads}",
            f"files         {facts['stream']}",
            f"              {facts['picture']}",
        ]
    )


def _named(network: dict[str, Any]) -> str:
    return f"{network['builder']}, {network['classes']} classes"
