"""``compress`` and ``decompress`` of learned codecs: cdzoo against CompressAI with the same weights.

*To latents* is where cdzoo's ``decompress`` stops. CompressAI has no call that does; its steps up to there are run:
decode z, hyper-decoder in float32, indexes, decode y. *To pixels* adds the synthesis transform on both sides.
"Trained" are the weights that ship (``N=48, M=64``); weights of the papers' width are random, scaled so that latents
spread over symbols and tables as trained ones do. Sizes are multiples of 64, so that CompressAI need not pad.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import compressai.models
import torch
from measuring import Options, Row, compare, torch_threads
from pictures import bits_per_pixel, images
from torch import Tensor, nn

import cdzoo
from cdzoo.codecs import Codec

GROUP = "learned-codecs"
THEIRS = {
    "bmshj2018_factorized": compressai.models.FactorizedPrior,
    "bmshj2018_hyperprior": compressai.models.ScaleHyperprior,
    "mbt2018_mean": compressai.models.MeanScaleHyperprior,
}


class Pair(NamedTuple):
    """A codec in both libraries, with the same weights."""

    ours: Codec
    theirs: Any


class Coded(NamedTuple):
    """The same images as bits of both libraries."""

    streams: list[bytes]
    packed: dict[str, Any]


def pair(name: str = "bmshj2018_hyperprior", *, trained: bool = True, **sizes: int) -> Pair:
    """A codec of cdzoo and CompressAI's model with its weights, ready to code."""
    torch.manual_seed(0)
    codec = cdzoo.get_codec(name, weights="DEFAULT" if trained else None, **sizes).eval()
    if not trained:
        spread_out(codec)
    theirs = THEIRS[name](codec.N, codec.M).eval()
    theirs.load_state_dict({**theirs.state_dict(), **codec.state_dict()})
    theirs.update(force=True)
    return Pair(codec, theirs)


@torch.no_grad()
def spread_out(codec: Codec) -> None:
    """Scale random weights such that latents and scales spread over many symbols and tables, as training would."""
    parts = [getattr(codec, part) for part in ("h_a", "h_s") if hasattr(codec, part)]
    codec.g_a[-1].weight.mul_(10 if parts else 30)
    for part in parts:
        for module in part:
            if isinstance(module, nn.Conv2d | nn.ConvTranspose2d):
                module.weight.mul_(2.5)
                module.bias.add_(0.3)


def compressai_latent(model: Any, packed: dict[str, Any]) -> Tensor:
    """CompressAI's ``decompress`` up to the latent, step by step."""
    strings, shape = packed["strings"], packed["shape"]
    z_hat = model.entropy_bottleneck.decompress(strings[-1], shape)
    if len(strings) == 1:
        return z_hat  # the factorized prior's z is the latent
    parameters, means = model.h_s(z_hat), None
    if isinstance(model, compressai.models.MeanScaleHyperprior):
        parameters, means = parameters.chunk(2, 1)
    indexes = model.gaussian_conditional.build_indexes(parameters)
    y_hat: Tensor = model.gaussian_conditional.decompress(strings[0], indexes, z_hat.dtype, means=means)
    return y_hat


@torch.no_grad()
def coded(codecs: Pair, x: Tensor) -> Coded:
    """Images ``(B, 3, H, W)`` as bits of both, which hold the same latents."""
    bits = Coded(codecs.ours.compress(x), codecs.theirs.compress(x))
    y_hat = compressai_latent(codecs.theirs, bits.packed)
    # means come from integers here and from float32 there
    assert not x.is_cpu or torch.allclose(codecs.ours.decompress(bits.streams).y_hat, y_hat, atol=1e-3)
    return bits


def measure(
    codecs: Pair, weights: str, batch: int, size: tuple[int, int], threads: int, options: Options
) -> Iterator[Row]:
    """The three calls on one batch."""
    codec, theirs = codecs
    x = images(size, batch, options.photo)
    streams, packed = coded(codecs, x)
    ways: dict[str, tuple[Callable[[], Any], Callable[[], Any]]] = {
        "compress": (lambda: codec.compress(x), lambda: theirs.compress(x)),
        "decompress to latents": (lambda: codec.decompress(streams), lambda: compressai_latent(theirs, packed)),
        "decompress to pixels": (
            lambda: codec.decode(codec.decompress(streams)),
            lambda: theirs.decompress(**packed)["x_hat"],
        ),
    }
    shape = {"size": "x".join(map(str, size)), "batch": batch, "threads": threads}
    for call, (ours, their) in ways.items():
        case = {"call": call, "codec": codec.name, "weights": weights, **shape}
        case["bits per pixel"] = bits_per_pixel(streams, size)
        yield compare(GROUP, case, {"cdzoo": ours, "CompressAI": their}, options)


@torch.no_grad()
def rows(options: Options) -> Iterator[Row]:
    """All of this group."""
    if options.quick:
        plan = [("bmshj2018_hyperprior", True, [(1, (64, 64))])]
    else:
        plan = [
            ("bmshj2018_hyperprior", True, [(8, (256, 256)), (1, (1024, 1024))]),
            ("bmshj2018_hyperprior", False, [(1, (256, 256))]),
            ("mbt2018_mean", True, [(1, (256, 256))]),
            ("bmshj2018_factorized", False, [(1, (256, 256))]),
        ]
    for name, trained, cases in plan:
        codecs = pair(name, trained=trained)
        for batch, size in cases:
            for threads in options.threads if batch > 1 else options.threads[:1]:
                with torch_threads(threads):
                    weights = f"{'trained' if trained else 'random'}, N={codecs.ours.N}, M={codecs.ours.M}"
                    yield from measure(codecs, weights, batch, size, threads, options)
