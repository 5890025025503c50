"""Bytes of JPEG files to labels: ``jpeg_resnet18`` on coefficients, against decoding and the same network on pixels.

The pixel network consists of the same modules, and so has the same weights. *Full width* reads files at their own size,
with random weights. *Trained* is the narrow network that ships, whose transform brings photographs near the size that
it was trained at: in the DCT domain here; by resizing after torchvision's and Pillow's decoders; and by Pillow's
``draft`` mode, in which libjpeg reduces while it decodes. Decoders run in as many threads as the network.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from jpeg_reading import pillow_decode, torchvision_decode
from measuring import Options, Row, compare, torch_threads
from pictures import bits_per_pixel, jpeg_files
from PIL import Image
from torch import Tensor, nn

from cdzoo.codecs import decode_jpeg, read_jpeg
from cdzoo.models import jpeg_resnet18

GROUP = "jpeg-to-labels"
FULL = [(224, 1), (224, 4), (512, 1), (1024, 1)]
TRAINED = [(224, 8), (512, 8), (1024, 8), (2048, 1)]
Map = Callable[[Callable[[Any], Any], Sequence[Any]], list[Any]]


class OnPixels(nn.Module):
    """The modules of a ``jpeg_resnet18``, on images uint8 ``(B, 3, H, W)``."""

    mean: Tensor
    std: Tensor

    def __init__(self, model: Any) -> None:
        super().__init__()
        stages = (model.layer1, model.layer2, model.layer3, model.layer4)
        self.features = nn.Sequential(model.conv1, model.bn1, model.relu, model.maxpool, *stages)
        self.fc = model.fc
        for name, values in (("mean", (0.485, 0.456, 0.406)), ("std", (0.229, 0.224, 0.225))):
            self.register_buffer(name, torch.tensor(values).view(3, 1, 1))

    def forward(self, images: Tensor) -> Tensor:
        """Logits ``(B, num_classes)``."""
        x = images.contiguous(memory_format=torch.channels_last).float().div_(255).sub_(self.mean).div_(self.std)
        logits: Tensor = self.fc(self.features(x).mean((2, 3)))
        return logits


def network(trained: bool) -> tuple[Any, OnPixels]:
    """The network over coefficients, and over pixels."""
    torch.manual_seed(0)
    model = jpeg_resnet18(weights="DEFAULT" if trained else None).eval().to(memory_format=torch.channels_last)
    return model, OnPixels(model).eval()


def pillow_draft(data: bytes, size: tuple[int, int]) -> Tensor:
    """RGB uint8 at about ``size``, reduced by libjpeg while it decodes."""
    with Image.open(io.BytesIO(data)) as image:
        image.draft("RGB", size[::-1])
        return torch.from_numpy(np.array(image.convert("RGB"))).permute(2, 0, 1)


def resized(image: Tensor, size: tuple[int, int]) -> Tensor:
    """One image ``(3, H, W)`` uint8, smoothed and reduced."""
    return F.interpolate(image[None], size=size, mode="bilinear", antialias=True)[0]


def ways(
    model: Any, twin: OnPixels, files: list[bytes], threads: int, over: Map, device: str = "cpu"
) -> dict[str, Callable[[], Tensor]]:
    """Functions from files to logits on the CPU, by name."""
    header = read_jpeg(files[0])
    factor = model.transforms.factor(header.image_size)
    small = tuple(-(-side // factor) for side in header.image_size)

    def coefficients() -> Tensor:
        read = read_jpeg(files, num_threads=threads)
        logits: Tensor = model(model.transforms(read.to(device))).cpu()
        return logits

    def pixels(decode: Callable[[bytes], Tensor]) -> Callable[[], Tensor]:
        return lambda: twin(torch.stack(over(decode, files)).to(device)).cpu()

    if factor == 1:
        return {"cdzoo": coefficients, "torchvision": pixels(torchvision_decode), "Pillow": pixels(pillow_decode)}
    return {
        "cdzoo": coefficients,
        "torchvision": pixels(lambda data: resized(torchvision_decode(data), small)),
        "Pillow": pixels(lambda data: resized(pillow_decode(data), small)),
        "Pillow draft": pixels(lambda data: pillow_draft(data, small)),
    }


def check(model: Any, twin: OnPixels, files: list[bytes]) -> None:
    """Both networks are one: on a decode without rounding and smoothing their logits are equal."""
    read = read_jpeg(files)
    x = (decode_jpeg(read, clamp=False, chroma="nearest").to(twin.mean.device) - twin.mean) / twin.std
    expected = twin.fc(twin.features(x).mean((2, 3)))
    torch.testing.assert_close(model(read.to(twin.mean.device)), expected, rtol=1e-3, atol=1e-3)


@torch.no_grad()
def rows(options: Options) -> Iterator[Row]:
    """All of this group."""
    plan = {False: [(32, 1)], True: [(320, 1)]} if options.quick else {False: FULL, True: TRAINED}
    for trained, cases in plan.items():
        model, twin = network(trained)
        check(model, twin, jpeg_files((32, 48), 2, options.photo))
        for size, batch in cases:
            files = jpeg_files((size, size), batch, options.photo)
            for threads in options.threads if batch > 1 else options.threads[:1]:
                with torch_threads(threads) as over:
                    case = {
                        "network": "trained, width 0.375" if trained else "full width",
                        "size": size,
                        "batch": batch,
                        "threads": threads,
                        "bits per pixel": bits_per_pixel(files, (size, size)),
                    }
                    yield compare(GROUP, case, ways(model, twin, files, threads, over), options)
