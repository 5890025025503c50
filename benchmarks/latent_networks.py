"""Bits of a learned codec to labels: networks on latents, against CompressAI's decoder and a ResNet-50 on pixels.

Codec weights are the same on both sides. At full width, the papers' networks read latents of 192 channels resized to
28x28, and the ResNet-50 reads images resized to 224x224, so that no network's cost depends on the image's size; their
weights are random. *Trained* is the pair that ships, an eighth as wide, against a ResNet-50 of that width.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
import torch.nn.functional as F
from learned_codecs import Coded, Pair, coded, pair
from measuring import Options, Row, row, timed, torch_threads
from pictures import bits_per_pixel, images
from torch import Tensor, nn

import cdzoo
from cdzoo.transforms import LatentTransform

GROUP = "cdz-to-labels"
FULL = [(256, 1), (256, 4), (512, 1)]
TRAINED = [(256, 1), (256, 8), (1024, 1)]


def networks(codecs: Pair, *, trained: bool, width: float = 1.0) -> tuple[dict[str, Any], nn.Module]:
    """Codec and network in one, by the network's name; and the ResNet-50 on pixels."""
    torch.manual_seed(0)
    if trained:
        found = {"fa_cresnet39": cdzoo.models.fa_cresnet39(weights="DEFAULT").eval()}
        return _composed(codecs, found), cdzoo.models.resnet50(width=0.125, num_classes=10).eval()
    sizes = {"in_channels": codecs.ours.latent_channels, "latent_stride": codecs.ours.stride, "width": width}
    found = {"fa_cresnet39": cdzoo.models.fa_cresnet39(**sizes), "cresnet39": cdzoo.models.cresnet39(**sizes)}
    for model in found.values():
        model.eval().transforms = LatentTransform(size=(28, 28))
    return _composed(codecs, found), cdzoo.models.resnet50(width=width).eval()


def _composed(codecs: Pair, found: dict[str, Any]) -> dict[str, Any]:
    return {name: cdzoo.compose(codecs.ours, model) for name, model in found.items()}


def ways(
    codecs: Pair, ours: dict[str, Any], resnet50: nn.Module, bits: Coded, threads: int
) -> dict[str, Callable[[], Tensor]]:
    """Functions from streams to logits on the CPU, by name."""
    device = next(resnet50.parameters()).device

    def through_pixels() -> Tensor:
        x_hat = codecs.theirs.decompress(**bits.packed)["x_hat"].to(device)
        logits: Tensor = resnet50(F.interpolate(x_hat, size=(224, 224), mode="bilinear")).cpu()
        return logits

    found = {
        name: lambda model=model: model.from_streams(bits.streams, num_threads=threads).cpu()
        for name, model in ours.items()
    }
    return {**found, "CompressAI": through_pixels}


@torch.no_grad()
def rows(options: Options) -> Iterator[Row]:
    """All of this group; the networks share their rounds with one peer."""
    plan = {True: [(64, 1)]} if options.quick else {False: FULL, True: TRAINED}
    for trained, cases in plan.items():
        codecs = pair(trained=trained)
        ours, resnet50 = networks(codecs, trained=trained)
        for size, batch in cases:
            bits = coded(codecs, images((size, size), batch, options.photo))
            for threads in options.threads if batch > 1 else options.threads[:1]:
                with torch_threads(threads):
                    times = timed(ways(codecs, ours, resnet50, bits, threads), options, wall=threads != 1)
                for name in ours:
                    case = {
                        "network": f"{name}, {'trained, width 0.125' if trained else 'full width'}",
                        "size": size,
                        "batch": batch,
                        "threads": threads,
                        "bits per pixel": bits_per_pixel(bits.streams, (size, size)),
                    }
                    yield row(GROUP, case, {name: times[name], "CompressAI": times["CompressAI"]})
