"""What 004's network and its rivals compute for an image of 224 pixels, by counting: figure 7.

    cost.py

Multiply-adds of convolutions, linear layers and attention, at the published sizes, without entropy coding. Behind
``mbt2018_mean`` (128 and 192 channels, its setting for low rates) stand networks of timm on the decoded image. The
hyper-decoder is counted with the encoder, though whoever reads bits runs it too.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "recipes"))

import timm
import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode
from training import write_text

import cdzoo

RIVALS = {"ResNet-50": "resnet50", "DeiT-S": "deit_small_patch16_224", "Swin-T": "swin_tiny_patch4_window7_224"}
ENCODER = ("g_a", "h_a", "h_s")


def count(network: nn.Module, parts: tuple[str, ...] = ("",)) -> float:
    """Giga multiply-adds of some parts of a network, by the beginnings of their names."""
    # the counter knows attention on a CPU by its matrix products only
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH), torch.no_grad():
        network.eval()(torch.zeros(1, 3, 224, 224))
    whole = counter.get_flop_counts()
    if parts == ("",):
        return counter.get_total_flops() / 2e9
    name = type(network).__name__
    return sum(sum(whole[f"{name}.{part}"].values()) for part in parts) / 2e9


def measure() -> dict[str, Any]:
    """The figures, in G multiply-adds."""
    ours = cdzoo.models.icat_small(hyperprior=True)
    codec = cdzoo.codecs.mbt2018_mean(N=128, M=192)
    early = tuple(f"blocks.{i}" for i in range(3))
    late = tuple(f"blocks.{i}" for i in range(3, len(ours.blocks)))
    rows = {
        "icat_small": {
            "encode": count(ours, ENCODER),
            "rebuild": count(ours, ("embed", *early, *(f"reduce.{i}" for i in range(4)), "fuse", "g_s")),
            "classify": count(ours, ("embed", *early, *late, "fc")),
        }
    }
    decode = count(codec, ("g_s",))
    for name, network in RIVALS.items():
        rows[f"mbt2018_mean + {name}"] = {
            "encode": count(codec, ENCODER),
            "rebuild": decode,
            "classify": decode + count(timm.create_model(network)),
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
