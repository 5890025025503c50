"""Photographs of any size at a network's size: bytes to a normalized 224x224 input, to labels, and through a loader.

All ways resize the shorter side to 256 with antialiasing and cut out the central 224x224. ``read_jpeg(transform=)``
does it between coefficients, the peers on pixels of 8 bits. *Bytes to coefficients* ends there, with the input of a
network over coefficients, which folds colors and normalization into its first convolution; *bytes to input* goes on
to normalized RGB. *Draft*, *min_factor*, *scaled* and *reduced* let libjpeg
decode at 1/2, 1/4 or 1/8 of the size first, which is faster and less exact. The error of each way is against the
decode in float64 without rounding and clamping, resized in float64: root of the mean square, in levels of 255.
"""

from __future__ import annotations

import importlib
import io
import os
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jpeg_reading import torchvision_decode
from measuring import Options, Row, compare, row, timed, torch_threads
from pictures import picture
from PIL import Image
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from cdzoo.codecs import decode_jpeg, read_jpeg
from cdzoo.data import CoefficientDataset
from cdzoo.ops import to_jpeg_domain
from cdzoo.transforms import CoefficientTransform

GROUP = "jpeg-any-size"
RESIZE, CROP = 256, 224
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
TRANSFORM = CoefficientTransform(resize=RESIZE, crop=CROP)
SIZES = {0.2: (375, 500), 1: (866, 1155), 4: (1732, 2309), 12: (3000, 4000), 48: (6000, 8000)}
"""By megapixels."""

KINDS = [(75, "4:2:0", False), (85, "4:2:0", False), (96, "4:2:0", False), (85, "4:4:4", False), (85, "4:2:0", True)]
OPTIONAL = {"torchcodec": "torchcodec", "simplejpeg": "simplejpeg", "PyTurboJPEG": "turbojpeg", "OpenCV": "cv2"}
"""Peers that are measured where they can be imported, and the modules that they are imported by."""

LARGEST_EXACT = 12e6  # pixels of the photographs whose errors are computed: float64 takes 24 bytes a pixel


def normalized(pixels: Tensor) -> Tensor:
    """RGB ``(3, h, w)`` uint8 of any size to the input ``(1, 3, 224, 224)`` of a network."""
    from torchvision.transforms.v2 import functional

    small = functional.center_crop(functional.resize(pixels, [RESIZE], antialias=True), [CROP, CROP])
    return functional.normalize(small.float() / 255, list(MEAN), list(STD))[None]


def reduction(size: tuple[int, int]) -> int:
    """The largest of 1, 2, 4 and 8 that leaves the shorter side at least as long as it has to be."""
    return max(n for n in (1, 2, 4, 8) if n == 1 or min(size) // n >= RESIZE)


def from_array(array: Any) -> Tensor:
    """RGB ``(h, w, 3)`` to the input of a network."""
    return normalized(torch.from_numpy(np.ascontiguousarray(array)).permute(2, 0, 1))


def pillow(data: bytes, *, draft: bool) -> Tensor:
    """Pillow all the way: its own antialiased resizing."""
    with Image.open(io.BytesIO(data)) as image:
        if draft:
            image.draft("RGB", (RESIZE, RESIZE))
        scale = RESIZE / min(image.size)
        size = tuple(RESIZE if n == min(image.size) else int(n * scale) for n in image.size)
        small = image.convert("RGB").resize(size, Image.Resampling.BILINEAR)
    left, top = (round((n - CROP) / 2) for n in size)
    levels = torch.from_numpy(np.array(small.crop((left, top, left + CROP, top + CROP)))).permute(2, 0, 1)
    return ((levels.float() / 255 - torch.tensor(MEAN)[:, None, None]) / torch.tensor(STD)[:, None, None])[None]


def ways() -> tuple[dict[str, Callable[[bytes], Tensor]], dict[str, str]]:
    """Functions from a file to the input of a network, cdzoo's first; and the peers that are missing here."""
    entrance = to_jpeg_domain(nn.Identity(), mean=MEAN, std=STD, transforms=TRANSFORM)
    found: dict[str, Callable[[bytes], Tensor]] = {
        "cdzoo": lambda data: entrance(read_jpeg(data, transform=TRANSFORM)),
        "torchvision": lambda data: normalized(torchvision_decode(data)),
        "Pillow": lambda data: pillow(data, draft=False),
        "Pillow draft": lambda data: pillow(data, draft=True),
    }
    modules, skipped = {}, {}
    for name, module in OPTIONAL.items():
        try:
            modules[name] = importlib.import_module(module)
        except (ImportError, OSError, RuntimeError) as error:  # or a library that it loads is missing
            skipped[name] = f"not installed ({type(error).__name__})"
    for name, module in list(modules.items()):
        try:
            found |= optional(name, module)
        except (ImportError, OSError, RuntimeError, AttributeError) as error:
            skipped[name] = f"does not work here: {error}"[:80]
    return found, skipped


def optional(name: str, module: Any) -> dict[str, Callable[[bytes], Tensor]]:
    """The ways of a peer that may be missing."""
    if name == "torchcodec":
        decoders = importlib.import_module("torchcodec.decoders")
        decode = decoders.decode_image
        return {"torchcodec": lambda data: normalized(decode(torch.frombuffer(bytearray(data), dtype=torch.uint8)))}
    if name == "simplejpeg":

        def scaled(data: bytes) -> Tensor:
            height, width, *_ = module.decode_jpeg_header(data)
            least = {"min_height": RESIZE, "min_width": RESIZE} if min(height, width) > RESIZE else {}
            return from_array(module.decode_jpeg(data, min_factor=1, **least))

        return {"simplejpeg": lambda data: from_array(module.decode_jpeg(data)), "simplejpeg min_factor": scaled}
    if name == "PyTurboJPEG":
        turbo = module.TurboJPEG()

        def turbo_scaled(data: bytes) -> Tensor:
            width, height, *_ = turbo.decode_header(data)
            factor = (1, reduction((height, width)))
            return from_array(turbo.decode(data, pixel_format=module.TJPF_RGB, scaling_factor=factor))

        return {"PyTurboJPEG scaled": turbo_scaled}
    flags = {1: module.IMREAD_COLOR, 2: module.IMREAD_REDUCED_COLOR_2}
    flags |= {4: module.IMREAD_REDUCED_COLOR_4, 8: module.IMREAD_REDUCED_COLOR_8}

    def opencv(data: bytes, *, reduced: bool) -> Tensor:
        with Image.open(io.BytesIO(data)) as image:
            factor = reduction(image.size) if reduced else 1
        flag = flags[factor] | module.IMREAD_IGNORE_ORIENTATION
        return from_array(module.imdecode(np.frombuffer(data, np.uint8), flag)[..., ::-1])

    return {
        "OpenCV": lambda data: opencv(data, reduced=False),
        "OpenCV reduced": lambda data: opencv(data, reduced=True),
    }


def error(found: Tensor, data: bytes) -> float:
    """Root mean square against the reference, in levels."""
    from torchvision.transforms.v2 import functional

    exact = decode_jpeg(read_jpeg(data), clamp=False, dtype=torch.float64)
    small = functional.center_crop(functional.resize(exact, [RESIZE], antialias=True), [CROP, CROP])
    mean, std = (torch.tensor(values, dtype=torch.float64)[:, None, None] for values in (MEAN, STD))
    return float((found * std + mean - small).square().mean().sqrt() * 255)


def jpeg_file(
    size: tuple[int, int], quality: int, subsampling: str, progressive: bool, options: Options, *, seed: int = 0
) -> bytes:
    """A JPEG file of the photograph of the options, or of the default one, at a size; seeds cut other pieces."""
    buffer = io.BytesIO()
    saved = {"quality": quality, "subsampling": subsampling, "progressive": progressive}
    picture(size, seed, options.photo).save(buffer, "JPEG", **saved)
    return buffer.getvalue()


def to_input(options: Options) -> Iterator[Row]:
    """A file at a time in one thread, for each size and kind."""
    found, skipped = ways()
    for megapixels, size in SIZES.items():
        if options.quick and megapixels > 0.2:
            break
        for quality, subsampling, progressive in KINDS[:2] if options.quick else KINDS:
            data = jpeg_file(size, quality, subsampling, progressive, options)
            tasks = {name: lambda way=way, data=data: way(data) for name, way in found.items()}
            tasks["coefficients"] = lambda data=data: read_jpeg(data, transform=TRANSFORM)
            errors = "not computed"
            if size[0] * size[1] <= LARGEST_EXACT:
                errors = ", ".join(f"{name} {error(way(data), data):.2g}" for name, way in found.items())
            times = timed(tasks, options, wall=False)
            peers = {name: times[name] for name in found if name != "cdzoo"}
            for name, call in (("cdzoo", "bytes to input"), ("coefficients", "bytes to coefficients")):
                case = {
                    "files": f"{'progressive' if progressive else 'baseline'}, quality {quality}, {subsampling}",
                    "call": call,
                    "megapixels": megapixels,
                    "size": "x".join(map(str, size)),
                    "batch": 1,
                    "threads": 1,
                    "errors (levels)": errors,
                }
                yield row(GROUP, case, {name: times[name], **peers}, skipped=skipped)


def mixed(options: Options) -> list[bytes]:
    """Photographs of mixed sizes and kinds, as people have them."""
    sizes = [(375, 500), (500, 375), (333, 500), (866, 1155)] if options.quick else [*SIZES.values()][:4]
    return [jpeg_file(size, *kind, options) for size in sizes for kind in KINDS[: 1 if options.quick else 5]]


def in_threads(megapixels: float, count: int, threads: int, options: Options) -> Row:
    """A batch of photographs of one size to coefficients, in several threads and in one."""
    size = SIZES[megapixels]
    files = [jpeg_file(size, *KINDS[i % 3], options, seed=i) for i in range(count)]
    case = {
        "files": "baseline, quality 75 to 96, 4:2:0",
        "call": "bytes to coefficients",
        "megapixels": megapixels,
        "size": "x".join(map(str, size)),
        "batch": count,
        "threads": threads,
    }
    tasks = {
        name: lambda used=used: read_jpeg(files, transform=TRANSFORM, num_threads=used)
        for name, used in (("cdzoo", threads), ("cdzoo, one thread", 1))
    }
    return compare(GROUP, case, tasks, options, per=count)


def to_labels(threads: int, options: Options) -> Row:
    """A batch of mixed photographs to the classes of an ImageNet network of small cost."""
    import timm

    files = mixed(options)
    network = timm.create_model("tf_efficientnet_lite0").eval()
    ours = to_jpeg_domain(network, transforms=TRANSFORM, mean=MEAN, std=STD)
    found, skipped = ways()
    found.pop("cdzoo")
    with torch_threads(threads) as map_over, torch.inference_mode():
        tasks: dict[str, Callable[[], object]] = {
            "cdzoo": lambda: ours(read_jpeg(files, transform=TRANSFORM, num_threads=threads)).argmax(1)
        }
        for name, way in found.items():
            tasks[name] = lambda way=way: network(torch.cat(map_over(way, files))).argmax(1)
        case = {
            "files": "mixed",
            "call": "bytes to labels",
            "size": "mixed",
            "batch": len(files),
            "threads": threads,
        }
        return compare(GROUP, case, tasks, options, skipped=skipped, per=len(files))


class Decoded(Dataset[Tensor]):
    """Files on disk through one of the ways."""

    def __init__(self, paths: Sequence[Path], way: Callable[[bytes], Tensor]) -> None:
        self.paths, self.way = list(paths), way

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> Tensor:
        return self.way(self.paths[index].read_bytes())[0]


def through_a_loader(threads: int, options: Options) -> Row:
    """An epoch of a ``DataLoader`` over mixed photographs in a folder; with 2 threads, two workers."""
    found, skipped = ways()
    workers = 0 if threads == 1 else threads
    with tempfile.TemporaryDirectory() as folder, torch_threads(1):
        paths = []
        for number, data in enumerate(mixed(options) * (1 if options.quick else 2)):
            paths.append(Path(folder, f"{number:03}.jpg"))
            paths[-1].write_bytes(data)
        settings: dict[str, Any] = {"batch_size": 8, "num_workers": workers}
        entrance = to_jpeg_domain(nn.Identity(), mean=MEAN, std=STD, transforms=TRANSFORM)
        dataset = CoefficientDataset(folder, transform=TRANSFORM, labels=None)
        tasks: dict[str, Callable[[], object]] = {
            "cdzoo": lambda: [entrance(batch) for batch in DataLoader(dataset, **settings)]
        }
        for name in ("torchvision", "Pillow", "Pillow draft"):
            other = Decoded(paths, found[name])
            tasks[name] = lambda other=other: list(DataLoader(other, **settings))
        case = {"files": "mixed", "call": "DataLoader", "size": "mixed", "batch": 8, "threads": threads}
        return compare(GROUP, case, tasks, options, skipped=skipped, per=len(paths))


def rows(options: Options) -> Iterator[Row]:
    """The rows of the group."""
    with torch_threads(1):
        yield from to_input(options)
    for threads in options.threads:
        if threads <= (os.cpu_count() or 1):
            if threads > 1:
                for megapixels, count in ((0.2, 2),) if options.quick else ((0.2, 64), (1, 32), (12, 8)):
                    yield in_threads(megapixels, count, threads, options)
            yield to_labels(threads, options)
            yield through_a_loader(threads, options)
