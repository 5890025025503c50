"""Stored photographs and streams to ImageNet's thousand classes: what most users come for.

The network is EfficientNet-Lite0 in all cases. cdzoo runs it from coefficients behind a stem on DCT blocks (*stem
dct*), from coefficients with its own first layers (*stem pixels*), and from the latents of the packaged codec. The
peers decode to pixels, resize the shorter side to 256 with antialiasing, cut out the central 224x224, and run the pixel
network. They resize bilinearly, which takes less time than the bicubic filter of cdzoo's transform; decoded streams are
resized bicubically. Tensors are ``channels_last``.

*Top-1* is that of the weights' cards, on 500 photographs of ImageNet; the pixel network after Pillow has 88.4 %. The
pixel network has the same weights on both sides.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
import torch.nn.functional as F
from jpeg_any_size import jpeg_file, ways
from measuring import Options, Row, row, timed, torch_threads
from pictures import images
from torch import Tensor, nn

import cdzoo
from cdzoo.codecs import read_jpeg
from cdzoo.models import JPEGEfficientNetLite0_Weights, LatentEfficientNetLite0_Weights

GROUP = "labels"
JPEG = [((375, 500), 8), ((866, 1155), 8), ((3000, 4000), 4)]
STREAMS = [((375, 500), 8), ((768, 1024), 4)]
STEMS = {"stem dct": "IMAGENET1K_DCT", "stem pixels": "IMAGENET1K_PIXELS"}
PEERS = ("torchvision", "torchcodec", "Pillow", "Pillow draft")


def pixel_network() -> nn.Module:
    """The network of timm with the packaged tensors, which carry its names."""
    import timm

    tensors = cdzoo.models.jpeg_efficientnet_lite0(weights="IMAGENET1K_PIXELS").state_dict()
    network = timm.create_model("tf_efficientnet_lite0").eval().to(memory_format=torch.channels_last)
    network.load_state_dict({name.replace("fc.", "classifier."): tensor for name, tensor in tensors.items()})
    return network


def top1(weights: Any) -> float:
    """Top-1 accuracy in per cent, as the weights' card states it first."""
    return next(iter(weights.meta["metrics"].values()))["top-1 (%)"]


def decode_and_label(codec: cdzoo.Codec, network: nn.Module, streams: list[bytes], threads: int) -> Tensor:
    """Streams to logits through pixels."""
    x = codec.decode(codec.decompress(streams, num_threads=threads))
    side = min(x.shape[2:])
    top, left = ((n - side) // 2 for n in x.shape[2:])
    x = x[..., top : top + side, left : left + side].contiguous(memory_format=torch.channels_last)
    x = F.interpolate(x, size=(224, 224), mode="bicubic", antialias=True)
    return network((x.clamp(0, 1) - 0.5) / 0.5)


def from_jpeg(network: nn.Module, threads: int, options: Options) -> Iterator[Row]:
    """JPEG files of one size, by both stems and by all peers in the same rounds."""
    members = {stem: JPEGEfficientNetLite0_Weights[name] for stem, name in STEMS.items()}
    models = {
        stem: cdzoo.models.jpeg_efficientnet_lite0(weights=member).for_inference() for stem, member in members.items()
    }
    found, skipped = ways()
    skipped = {name: why for name, why in skipped.items() if name in PEERS}

    def ours(model: Any, files: list[bytes]) -> Callable[[], Tensor]:
        return lambda: model(read_jpeg(files, transform=model.transforms, num_threads=threads))

    for size, batch in [((90, 120), 2)] if options.quick else JPEG:
        files = [jpeg_file(size, 85, "4:2:0", False, options, seed=seed) for seed in range(batch)]
        with torch_threads(threads) as over:
            tasks = {stem: ours(model, files) for stem, model in models.items()}
            for name in PEERS:
                if name in found:
                    tasks[name] = lambda way=found[name], files=files: network(torch.cat(over(way, files)))
            times = timed(tasks, options, wall=threads != 1, per=batch)
        for stem, member in members.items():
            case = {
                "files": "JPEG, quality 85",
                "network": stem,
                "top-1 (%)": top1(member),
                "size": "x".join(map(str, size)),
                "batch": batch,
                "threads": threads,
            }
            peers = {name: times[name] for name in tasks if name not in STEMS}
            yield row(GROUP, case, {stem: times[stem], **peers}, skipped=skipped)


def from_streams(network: nn.Module, threads: int, options: Options) -> Iterator[Row]:
    """Streams of the packaged codec at its middle rate."""
    member = LatentEfficientNetLite0_Weights.DEFAULT
    codec, model = member.build_codec(), cdzoo.models.latent_efficientnet_lite0(weights=member).for_inference()
    composed = cdzoo.compose(codec, model)
    for size, batch in [((160, 200), 2)] if options.quick else STREAMS:
        streams = codec.compress(images(size, batch, options.photo))
        tasks: dict[str, Callable[[], Tensor]] = {
            "latents": lambda streams=streams: composed.from_streams(streams, num_threads=threads),
            "decode": lambda streams=streams: decode_and_label(codec, network, streams, threads),
        }
        with torch_threads(threads):
            times = timed(tasks, options, wall=threads != 1, per=batch)
        case = {
            "files": ".cdz",
            "network": "latents",
            "top-1 (%)": top1(member),
            "size": "x".join(map(str, size)),
            "batch": batch,
            "threads": threads,
        }
        yield row(GROUP, case, times)


@torch.inference_mode()
def rows(options: Options) -> Iterator[Row]:
    """All of this group."""
    network = pixel_network()
    for threads in options.threads:
        yield from from_jpeg(network, threads, options)
        yield from from_streams(network, threads, options)
