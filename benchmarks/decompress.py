"""From bytes to latents and to logits: cdzoo against CompressAI with the same weights, in one run, as ratios.

CompressAI's way to the point where cdzoo stops is its own ``decompress`` without the synthesis transform: decode z,
run the hyper-decoder in float32, build indexes, decode y. The whole paths are bits -> latents -> FA-cResNet-39 on one
side, and bits -> pixels -> ResNet-50 on the other. Networks have random weights: their speed does not depend on them.
Repeats alternate between the two sides, and medians are reported.

    python benchmarks/decompress.py --repeat 7 --json decompress.json
"""

from __future__ import annotations

import argparse
import json
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import torch
import torchvision
from torch import Tensor, nn

import cdzoo
from cdzoo.codecs.hyperprior import ScaleHyperprior
from cdzoo.transforms import LatentTransform

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    import compressai.models

CASES = ((16, 224, 224), (1, 512, 768))


def spread_out(codec: ScaleHyperprior) -> None:
    """Scale random weights such that latents and scales spread over many symbols and tables, as training would."""
    with torch.no_grad():
        codec.g_a[-1].weight.mul_(4)
        for part in (codec.h_a, codec.h_s):
            for module in part:
                if isinstance(module, nn.Conv2d | nn.ConvTranspose2d):
                    module.weight.mul_(2.5)
                    module.bias.add_(0.3)


def alternate(functions: dict[str, Callable[[], Any]], repeat: int) -> dict[str, float]:
    """Median milliseconds of each function, called in turn ``repeat`` times."""
    times: dict[str, list[float]] = {name: [] for name in functions}
    for _ in range(repeat):
        for name, function in functions.items():
            function()  # brings caches and clock into the state in which a loop over such calls would find them
            start = time.perf_counter()
            function()
            times[name].append(1000 * (time.perf_counter() - start))
    return {name: median(values) for name, values in times.items()}


@torch.no_grad()
def run(batch: int, height: int, width: int, repeat: int, threads: int) -> dict[str, Any]:
    """All figures for one batch."""
    torch.set_num_threads(threads)
    torch.manual_seed(0)
    codec = cdzoo.codecs.bmshj2018_hyperprior().eval()
    assert isinstance(codec, ScaleHyperprior)
    spread_out(codec)
    theirs: Any = compressai.models.ScaleHyperprior(codec.N, codec.M).eval()
    theirs.load_state_dict({**theirs.state_dict(), **codec.state_dict()})
    theirs.update(force=True)

    coarse = torch.rand(batch, 3, -(-height // 16), -(-width // 16))
    x = nn.functional.interpolate(coarse, size=(height, width), mode="bilinear")
    x = (x + 0.1 * torch.randn_like(x)).clamp(0, 1)
    streams = codec.compress(x)
    # CompressAI takes multiples of 64 only: it gets the padded image, and in return the same latent of the true part
    padded = nn.functional.pad(x, (0, -width % 64, 0, -height % 64), mode="replicate")
    packed = theirs.compress(padded)
    rows, columns = -(-height // 16), -(-width // 16)

    z_hat = theirs.entropy_bottleneck.decompress(packed["strings"][1], packed["shape"])
    scales = theirs.h_s(z_hat)
    indexes = theirs.gaussian_conditional.build_indexes(scales)

    def compressai_latent() -> Tensor:
        z_hat = theirs.entropy_bottleneck.decompress(packed["strings"][1], packed["shape"])
        indexes = theirs.gaussian_conditional.build_indexes(theirs.h_s(z_hat))
        y_hat: Tensor = theirs.gaussian_conditional.decompress(packed["strings"][0], indexes, z_hat.dtype)
        return y_hat

    def compressai_without_h_s() -> Tensor:
        z_hat = theirs.entropy_bottleneck.decompress(packed["strings"][1], packed["shape"])
        indexes = theirs.gaussian_conditional.build_indexes(scales)
        y_hat: Tensor = theirs.gaussian_conditional.decompress(packed["strings"][0], indexes, z_hat.dtype)
        return y_hat

    decoder = codec.coding.decoder
    seen: list[tuple[Any, ...]] = []

    def record(*arguments: Any) -> Tensor:
        seen.append(arguments)
        return decoder(*arguments)

    codec.coding.decoder = record
    codec.decompress(streams)
    codec.coding.decoder = decoder
    parameters = decoder(*seen[0])

    def cdzoo_without_h_s() -> None:
        codec.coding.decoder = lambda *_: parameters
        codec.decompress(streams, num_threads=threads)
        codec.coding.decoder = decoder

    model = cdzoo.compose(codec, cdzoo.models.fa_cresnet39().eval())
    model.transforms = LatentTransform(size=(28, 28))
    resnet = torchvision.models.resnet50(weights=None).eval()
    latent = model.transforms(codec.decompress(streams))
    y_hat = compressai_latent()
    pixels = nn.functional.interpolate(x, size=(224, 224))

    times = alternate(
        {
            "cdzoo decompress": lambda: codec.decompress(streams, num_threads=threads),
            "CompressAI to the latent": compressai_latent,
            "cdzoo without h_s": cdzoo_without_h_s,
            "CompressAI without h_s": compressai_without_h_s,
            "cdzoo h_s (integers)": lambda: decoder(*seen[0]),
            "CompressAI h_s (float32)": lambda: theirs.h_s(z_hat),
            "CompressAI z decoding": lambda: theirs.entropy_bottleneck.decompress(
                packed["strings"][1], packed["shape"]
            ),
            "CompressAI indexes": lambda: theirs.gaussian_conditional.build_indexes(scales),
            "CompressAI y decoding": lambda: theirs.gaussian_conditional.decompress(
                packed["strings"][0], indexes, z_hat.dtype
            ),
            "CompressAI g_s": lambda: theirs.g_s(y_hat),
            "FA-cResNet-39": lambda: model.model(latent),
            "ResNet-50": lambda: resnet(pixels),
            "cdzoo bytes to logits": lambda: model.from_streams(streams, num_threads=threads),
            "CompressAI bytes to logits": lambda: resnet(
                nn.functional.interpolate(theirs.decompress(**packed)["x_hat"], size=(224, 224))
            ),
        },
        repeat,
    )
    ours, their = times["cdzoo decompress"], times["CompressAI to the latent"]
    return {
        "case": f"{batch} x {height}x{width} ({batch} x {rows}x{columns}x{codec.M})",
        "threads": threads,
        "bits per symbol": round(8 * sum(map(len, streams)) / (batch * codec.M * rows * columns), 2),
        "milliseconds": {name: round(value, 2) for name, value in times.items()},
        "ratios": {
            "decompress": round(their / ours, 2),
            "decompress without h_s": round(times["CompressAI without h_s"] / times["cdzoo without h_s"], 2),
            "bytes to logits": round(times["CompressAI bytes to logits"] / times["cdzoo bytes to logits"], 2),
        },
    }


def main() -> None:
    """Run all cases and print one table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeat", type=int, default=5)
    parser.add_argument("--threads", type=int, nargs="+", default=[1])
    parser.add_argument("--json", type=Path, help="write all figures to this file")
    args = parser.parse_args()
    results = [run(*case, args.repeat, threads) for threads in args.threads for case in CASES]
    for result in results:
        print(f"\n{result['case']}, {result['threads']} thread(s), {result['bits per symbol']} bits per symbol")
        for name, value in result["milliseconds"].items():
            print(f"  {name:30} {value:10.2f} ms")
        for name, value in result["ratios"].items():
            print(f"  CompressAI / cdzoo, {name:22} {value:6.2f}x")
    if args.json:
        args.json.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
