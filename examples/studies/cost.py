"""Count the multiply-adds of Bai et al.'s network and its rivals for an image of 224 pixels: figure 7.

    python -m studies.cost

Convolutions, linear layers and attention count, at the published sizes; entropy coding does not. The rivals are
networks of timm on images decoded by ``mbt2018_mean`` (128 and 192 channels, its size for low rates). The
hyper-decoder is counted with the encoder, although reading a stream runs it too.
"""

from __future__ import annotations

import argparse
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import timm
import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode
from training import write_text

import cdzoo

RIVALS = {"ResNet-50": "resnet50", "DeiT-S": "deit_small_patch16_224", "Swin-T": "swin_tiny_patch4_window7_224"}


def count_of(work: Callable[[], Any]) -> dict[str, float]:
    """Giga multiply-adds of each module that ``work()`` calls, by its name, and of the whole by the name ``""``."""
    # the counter knows attention on a CPU by its matrix products only
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH), torch.no_grad():
        work()
    parts = {name: sum(flops.values()) / 2e9 for name, flops in counter.get_flop_counts().items()}
    return {**parts, "": counter.get_total_flops() / 2e9}


def count(network: nn.Module) -> dict[str, float]:
    """Costs of each part of a network, for an image of 224 pixels."""
    network.eval()
    root = type(network).__name__
    return {
        name.removeprefix(f"{root}."): value
        for name, value in count_of(lambda: network(torch.zeros(1, 3, 224, 224))).items()
    }


def measure() -> dict[str, Any]:
    """The figures, in G multiply-adds."""
    ours = count(cdzoo.models.icat_small(hyperprior=True))
    codec = count(cdzoo.codecs.mbt2018_mean(N=128, M=192))
    blocks = [value for name, value in ours.items() if re.fullmatch(r"blocks\.\d+", name)]
    aggregated = [value for name, value in ours.items() if re.fullmatch(r"reduce\.\d+", name)]
    rows = {
        "icat_small": {
            "encode": ours["g_a"] + ours["h_a"] + ours["h_s"],
            "rebuild": ours["embed"] + sum(blocks[:3]) + sum(aggregated) + ours["fuse"] + ours["g_s"],
            "classify": ours["embed"] + sum(blocks) + ours["fc"],
        }
    }
    for name, network in RIVALS.items():
        rows[f"mbt2018_mean + {name}"] = {
            "encode": codec["g_a"] + codec["h_a"] + codec["h_s"],
            "rebuild": codec["g_s"],
            "classify": codec["g_s"] + count(timm.create_model(network))[""],
        }
    return {name: {part: round(value, 3) for part, value in row.items()} for name, row in rows.items()}


def main() -> None:
    """Count."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "cost.json")
    args = parser.parse_args()
    write_text(args.out, json.dumps(measure(), indent=1) + "\n")


if __name__ == "__main__":
    main()
