"""Bytes and bits to labels with the network on a CUDA device: what the readers on the CPU leave it to wait for.

JPEG files are read or decoded by the CPU in as many threads as are given, copied, and classified; torchvision's
decoder on the device (nvJPEG) is a peer of its own. Bits of a learned codec are decoded by both libraries with their
transforms on the device. Logits come back to the CPU, so that every way waits for the device.
"""

from __future__ import annotations

from collections.abc import Iterator

import jpeg_networks
import latent_networks
import torch
from learned_codecs import coded, pair
from measuring import Options, Row, SkippedError, row, timed, torch_threads
from pictures import bits_per_pixel, images, jpeg_files
from torch import Tensor

GROUP = "accelerator"
JPEG = [(224, 32), (512, 32), (1024, 8)]
CDZ = [(256, 16), (512, 16), (1024, 4)]


def on_device(files: list[bytes], device: str) -> Tensor:
    """RGB uint8 ``(B, 3, H, W)``, decoded on the device."""
    from torchvision.io import ImageReadMode, decode_jpeg

    raw = [torch.frombuffer(bytearray(data), dtype=torch.uint8) for data in files]
    return torch.stack(decode_jpeg(raw, ImageReadMode.RGB, device=device))


def jpeg(size: int, batch: int, threads: int, device: str, options: Options) -> Row:
    """Files to labels, ``jpeg_resnet18`` at full width."""
    files = jpeg_files((size, size), batch, options.photo)
    model, twin = jpeg_networks.network(trained=False)
    model, twin = model.to(device), twin.to(device)
    jpeg_networks.check(model, twin, files)
    with torch_threads(threads) as over:
        ways = jpeg_networks.ways(model, twin, files, threads, over, device)
        if device != "cpu":
            ways["torchvision on the device"] = lambda: twin(on_device(files, device)).cpu()
        times = timed(ways, options, wall=True)
    case = {"from": "JPEG", "network": "jpeg_resnet18", "size": size, "batch": batch, "threads": threads}
    return row(GROUP, {**case, "bits per pixel": bits_per_pixel(files, (size, size))}, times)


def learned(size: int, batch: int, threads: int, device: str, options: Options) -> Iterator[Row]:
    """Bits to labels, networks at full width."""
    codecs = pair(trained=False, **({"N": 8, "M": 12} if options.quick else {}))
    ours, resnet50 = latent_networks.networks(codecs, trained=False, width=0.125 if options.quick else 1.0)
    for module in (codecs.ours, codecs.theirs, resnet50, *ours.values()):
        module.to(device)
    bits = coded(codecs, images((size, size), batch, options.photo).to(device))
    with torch_threads(threads):
        times = timed(latent_networks.ways(codecs, ours, resnet50, bits, threads), options, wall=True)
    for name in ours:
        case = {"from": ".cdz", "network": name, "size": size, "batch": batch, "threads": threads}
        case["bits per pixel"] = bits_per_pixel(bits.streams, (size, size))
        yield row(GROUP, case, {name: times[name], "CompressAI": times["CompressAI"]})


@torch.no_grad()
def rows(options: Options, device: str = "cuda") -> Iterator[Row]:
    """All of this group.

    Raises:
        SkippedError: there is no such device.
    """
    if device.startswith("cuda") and not torch.cuda.is_available():
        raise SkippedError("no CUDA device")
    for size, batch in [(64, 1)] if options.quick else JPEG:
        for threads in options.threads:
            yield jpeg(size, batch, threads, device, options)
    for size, batch in [(64, 1)] if options.quick else CDZ:
        for threads in options.threads:
            yield from learned(size, batch, threads, device, options)
