"""``cdzoo demo``: one photograph, recognised from its bits."""

from __future__ import annotations

import argparse
import os
from typing import Any

from cdzoo.cli._classify import pair, rank_lines, top_classes
from cdzoo.cli._files import make_folder, positive
from cdzoo.cli._report import Report, width_x_height
from cdzoo.demo import run_demo

__all__ = ["add_commands"]


def add_commands(commands: Any) -> None:
    """Add the parser."""
    parser = commands.add_parser(
        "demo",
        help="one photograph, recognised from its bits",
        description="Compress a photograph that comes with the package, classify it from its bits, decode it once for "
        "the eye, and draw a picture of the three.",
    )
    parser.add_argument("-o", "--output", metavar="DIR", default="cdzoo_demo", help="folder for the files (cdzoo_demo)")
    parser.add_argument("--model", metavar="NAME", help="network (fa_cresnet39, or what the weights are for)")
    parser.add_argument("--weights", metavar="WEIGHTS", default="DEFAULT", help="name, hf://owner/repo or folder")
    parser.add_argument("--codec", metavar="NAME|FOLDER", help="codec, by default the one that the weights belong to")
    parser.add_argument("--size", type=positive, metavar="PIXELS", help="resize the centre square to this side")
    parser.add_argument("--device", default="cpu", help="where networks run: cpu (default), cuda, ...")
    parser.add_argument("--json", action="store_true", help="print one JSON document")
    parser.set_defaults(run=demo, render=_render)


def demo(args: argparse.Namespace, report: Report) -> None:
    """Run ``cdzoo demo``."""
    network, facts = pair(args)
    result = run_demo(network, make_folder(args.output), size=args.size)
    report.facts |= {
        **facts,
        "stream": os.fspath(result.stream),
        "picture": os.fspath(result.picture),
        "image_size": list(result.header.image_size),
        "bytes": result.header.num_bytes,
        "bpp": result.header.bpp,
        "payload_bpp": result.header.payload_bpp,
        "psnr": result.psnr,
        "top": top_classes(result.logits, getattr(network.model, "meta", {}), 5),
        "logits_seconds": result.logits_seconds,
        "pixels_seconds": result.pixels_seconds,
        "num_threads": result.num_threads,
        "device": args.device,
    }


def _render(report: Report) -> str:
    facts = report.facts
    if "stream" not in facts:
        return ""
    threads = f"{facts['num_threads']} thread{'s' if facts['num_threads'] > 1 else ''}"
    return "\n".join(
        [
            f"photograph    {width_x_height(facts['image_size'])} pixels, {facts['bytes']:,} bytes as a .cdz stream",
            f"rate          {facts['bpp']:.4f} bpp with the header, {facts['payload_bpp']:.4f} without",
            f"quality       PSNR {facts['psnr']:.2f} dB, decoded once for the eye",
            f"network       {facts['model']['builder']}, from the bits; no pixel is rebuilt:",
            *rank_lines(facts["top"]),
            f"time          {1000 * facts['logits_seconds']:.1f} ms  bits -> latent -> logits",
            f"              {1000 * facts['pixels_seconds']:.1f} ms  bits -> latent -> pixels",
            f"              median of five runs after a warm-up, {facts['device']}, {threads}",
            f"files         {facts['stream']}",
            f"              {facts['picture']}",
        ]
    )
