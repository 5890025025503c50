"""Times from the bytes of files to logits, through coefficients and through pixels, for ``cdzoo bench``.

:func:`bench_photographs` measures the packaged network on photographs of any size. :func:`bench_jpeg` measures a
network of torchvision that was converted to coefficients, on files of the network's input size.

Every round runs each way once on the same files, in a rotating order, and medians over the rounds are compared. So a
machine that slows down slows all ways alike. Files are decoded in as many threads as the network has.
"""

from __future__ import annotations

import copy
import io
import statistics
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cdzoo.codecs import read_jpeg
from cdzoo.demo import PHOTO
from cdzoo.jpeg.nn.preprocessing import IMAGENET_MEAN, IMAGENET_STD
from cdzoo.models import jpeg_efficientnet_lite0
from cdzoo.ops import to_jpeg_domain

if TYPE_CHECKING:
    from PIL import Image

__all__ = ["PHOTOGRAPH_WAYS", "PhotographTiming", "Timing", "bench_jpeg", "bench_photographs", "median_seconds"]

_RESIZE, _CROP = 256, 224
_MOST_PIXELS = 24_000_000  # of the files of a batch
_STEMS = {"stem dct": "IMAGENET1K_DCT", "stem pixels": "IMAGENET1K_PIXELS"}
_DECODERS = ("Pillow", "torchvision")

PHOTOGRAPH_WAYS = {
    "stem dct": "cdzoo resizes the DCT coefficients; the network reads them through a stem that was trained on them",
    "stem pixels": "cdzoo resizes the DCT coefficients; they become the input of the unchanged pixel network",
    "Pillow": "Pillow decodes, resizes the shorter side to 256 (bicubic), crops 224x224; then the pixel network",
    "torchvision": "the same as Pillow, but torchvision decodes (libjpeg-turbo) and resizes",
}
"""The ways of :func:`bench_photographs`, and what each one does."""


class PhotographTiming(NamedTuple):
    """One way from photographs to logits.

    Attributes:
        way: a key of :data:`PHOTOGRAPH_WAYS`.
        size: ``(H, W)`` of the files.
        batch: files in a batch.
        threads: threads of PyTorch and of the readers.
        seconds: seconds for a file, from its bytes to logits.
        images_per_second: images per second.
        speedup: speed relative to ``"Pillow"`` and ``"torchvision"``; above 1 is faster.
    """

    way: str
    size: tuple[int, int]
    batch: int
    threads: int
    seconds: float
    images_per_second: float
    speedup: dict[str, float]


class Timing(NamedTuple):
    """One way from files to logits, or through a step of training.

    Attributes:
        task: ``"inference"`` or ``"training"``.
        way: ``"pixels"`` (decode, then the network), ``"fused"``, ``"factored"``.
        size: pixels of a side of the files, which are square.
        batch: files in a batch.
        threads: threads of PyTorch and of the readers.
        images_per_second: images per second, from the bytes of the files to the result.
        speedup: speed relative to ``"pixels"``; above 1 is faster.
        reading: share of the time for reading or decoding the files.
    """

    task: str
    way: str
    size: int
    batch: int
    threads: int
    images_per_second: float
    speedup: float
    reading: float


def bench_jpeg(
    *,
    model: str | nn.Module = "resnet18",
    sizes: Sequence[int] = (224,),
    batch: int = 8,
    threads: Sequence[int] = (1, 2),
    modes: Sequence[str] = ("fused", "factored"),
    tasks: Sequence[str] = ("inference", "training"),
    quality: int = 75,
    rounds: int = 7,
    photo: str | None = None,
) -> Iterator[Timing]:
    """Time a network on JPEG files of its input's size through each form, and on decoded pixels.

    The pixel way decodes with libjpeg-turbo, through torchvision. Both networks have the same weights in the same
    memory format.

    Args:
        model: a classifier of torchvision by name, built with random weights, or any such module over RGB.
        sizes: pixels of a side.
        batch: files in a batch.
        threads: thread counts to try, one after the other.
        modes: modes of :func:`cdzoo.ops.to_jpeg_domain`.
        tasks: ``"inference"``: files to logits. ``"training"``: forward, backward and a step of SGD.
        quality: JPEG quality of the files, with 4:2:0 subsampling.
        rounds: number of rounds; medians are reported.
        photo: an image file to cut the files from; the packaged photograph by default.

    Yields:
        a row for each way, ``"pixels"`` first, as soon as it is measured.

    Raises:
        ValueError: a number below 1, or an unknown model, mode or task.
    """
    _check_numbers({"sizes": sizes, "batch": [batch], "threads": threads, "rounds": [rounds]}, quality)
    if unknown := set(tasks) - {"inference", "training"}:
        raise ValueError(f"tasks={sorted(unknown)}: choose of inference and training")
    if isinstance(model, str):
        from torchvision.models import get_model

        torch.manual_seed(0)
        network: nn.Module = get_model(model)
    else:
        network = model
    network = network.to(memory_format=torch.channels_last)
    for size in sizes:
        files = _files(size, batch, quality, photo)
        for count in threads:
            with _torch_threads(count), ThreadPoolExecutor(count) as pool:
                for task in tasks:
                    yield from _rows(network, files, size, count, modes, task, rounds, pool)


def bench_photographs(
    *,
    sizes: Sequence[tuple[int, int]] = ((375, 500), (3000, 4000)),
    batch: int = 8,
    threads: Sequence[int] | None = None,
    quality: int = 85,
    rounds: int = 5,
    photo: str | None = None,
    told: Callable[[str, int, int], None] = lambda case, done, total: None,
) -> Iterator[PhotographTiming]:
    """Time the packaged network on JPEG photographs, from coefficients and from decoded and resized pixels.

    The network is :func:`cdzoo.models.jpeg_efficientnet_lite0` with both packaged sets of weights. The pixel network
    is the same EfficientNet-Lite0 in timm, ``channels_last``.

    Args:
        sizes: ``(H, W)`` of the files. The photograph is reduced to smaller sizes and repeated with mirrored copies
            for larger ones.
        batch: files in a batch; fewer where they would have more than 24 megapixels together.
        threads: thread counts to try, one after the other; by default the number that PyTorch uses.
        quality: JPEG quality of the files, with 4:2:0 subsampling.
        rounds: number of rounds; medians are reported.
        photo: an image file to make the files from; the packaged photograph by default.
        told: called after each run with the case, the number of finished runs, and that of all runs.

    Yields:
        four rows for each size and number of threads, as soon as they are measured.

    Raises:
        ValueError: a number below 1, or another quality than 1 to 95.
        OSError: the photograph cannot be read.
    """
    counts = [torch.get_num_threads()] if threads is None else threads
    sides = [side for size in sizes for side in size]
    _check_numbers({"sizes": sides, "batch": [batch], "threads": counts, "rounds": [rounds]}, quality)
    models = {way: jpeg_efficientnet_lite0(weights=name).for_inference() for way, name in _STEMS.items()}
    network, total = _pixel_network(), len(sizes) * len(counts) * len(PHOTOGRAPH_WAYS) * (rounds + 1)
    done = 0
    for size in sizes:
        number = max(1, min(batch, _MOST_PIXELS // (size[0] * size[1])))
        where = f"{number} file{'s' if number > 1 else ''} of {size[1]}x{size[0]} pixels"
        files = _photographs(size, number, quality, photo)
        for count in counts:
            case = f"{where}, {count} thread{'s' if count > 1 else ''}"

            def step(case: str = case) -> None:
                nonlocal done
                done += 1
                told(case, done, total)

            told(case, done, total)
            with _torch_threads(count), ThreadPoolExecutor(count) as pool, warnings.catch_warnings():
                # torchvision has deprecated its decoders in favor of another package
                warnings.simplefilter("ignore", DeprecationWarning)
                seconds = median_seconds(_photograph_tasks(models, network, files, count, pool), rounds, step)
            for way in PHOTOGRAPH_WAYS:
                yield PhotographTiming(
                    way=way,
                    size=size,
                    batch=number,
                    threads=count,
                    seconds=seconds[way] / number,
                    images_per_second=number / seconds[way],
                    speedup={name: seconds[name] / seconds[way] for name in _DECODERS},
                )


def median_seconds(
    tasks: dict[str, Callable[[], object]], rounds: int, step: Callable[[], None] = lambda: None
) -> dict[str, float]:
    """Seconds of each task: medians over rounds in which every task runs once, after a warm-up of each.

    A task whose warm-up takes more than three seconds is timed once, since noise matters less there. ``step`` is called
    after each run, and for runs that are left out.
    """
    names = list(tasks)
    times: dict[str, list[float]] = {name: [] for name in names}
    long = set()
    for name, task in tasks.items():
        begin = time.perf_counter()
        task()
        if time.perf_counter() - begin > 3:
            long.add(name)
        step()
    for turn in range(rounds):
        start = turn % len(names)
        for name in names[start:] + names[:start]:
            if not (turn and name in long):
                begin = time.perf_counter()
                tasks[name]()
                times[name].append(time.perf_counter() - begin)
            step()
    return {name: statistics.median(values) for name, values in times.items()}


def _check_numbers(numbers: dict[str, Sequence[int]], quality: int) -> None:
    for name, values in numbers.items():
        if not values or min(values) < 1:
            raise ValueError(f"{name}={values}: give numbers of at least 1")
    if not 1 <= quality <= 95:
        raise ValueError(f"quality={quality}: give 1 to 95, as Pillow recommends")


def _pixel_network() -> nn.Module:
    """EfficientNet-Lite0 of timm with the packaged tensors, which have its names."""
    import timm

    tensors = jpeg_efficientnet_lite0(weights=_STEMS["stem pixels"]).state_dict()
    network: nn.Module = timm.create_model("tf_efficientnet_lite0").eval()
    network.load_state_dict({name.replace("fc.", "classifier."): tensor for name, tensor in tensors.items()})
    return network.to(memory_format=torch.channels_last)


def _photograph_tasks(
    models: dict[str, Any], network: nn.Module, files: list[bytes], threads: int, pool: ThreadPoolExecutor
) -> dict[str, Callable[[], object]]:
    """The ways from the files to logits."""
    inputs = {"Pillow": _input_by_pillow, "torchvision": _input_by_torchvision}

    def levels(read: Callable[[bytes], Tensor]) -> Tensor:
        pixels = torch.stack(list(pool.map(read, files))).to(memory_format=torch.channels_last)
        return pixels.float().div_(127.5).sub_(1)  # mean 0.5, standard deviation 0.5

    tasks = {
        way: _inference(model, partial(read_jpeg, files, transform=model.transforms, num_threads=threads))
        for way, model in models.items()
    }
    return tasks | {way: _inference(network, partial(levels, read)) for way, read in inputs.items()}


def _input_by_pillow(data: bytes) -> Tensor:
    import numpy as np
    from PIL import Image

    with Image.open(io.BytesIO(data)) as image:
        scale = _RESIZE / min(image.size)
        width, height = (max(_RESIZE, int(n * scale)) for n in image.size)
        small = image.convert("RGB").resize((width, height), Image.Resampling.BICUBIC)
    left, top = round((width - _CROP) / 2), round((height - _CROP) / 2)
    return torch.from_numpy(np.array(small.crop((left, top, left + _CROP, top + _CROP)))).permute(2, 0, 1)


def _input_by_torchvision(data: bytes) -> Tensor:
    from torchvision.io import ImageReadMode, decode_jpeg
    from torchvision.transforms.v2 import InterpolationMode, functional

    pixels = decode_jpeg(torch.frombuffer(bytearray(data), dtype=torch.uint8), ImageReadMode.RGB)
    small = functional.resize(pixels, [_RESIZE], InterpolationMode.BICUBIC, antialias=True)
    cropped: Tensor = functional.center_crop(small, [_CROP, _CROP])
    return cropped


def _photographs(size: tuple[int, int], count: int, quality: int, photo: str | None) -> list[bytes]:
    """``count`` different JPEG files of one size: reduced pieces of a photograph, or mirrored copies side by side."""
    import numpy as np
    from PIL import Image

    with Image.open(PHOTO if photo is None else photo) as image:
        whole = image.convert("RGB")
    height, width = size
    # the largest piece of this shape, a little smaller than the photograph, so that pieces differ
    scale = 0.95 * min(whole.width / width, whole.height / height)
    files = []
    for i in range(count):
        if scale >= 1:
            part_size = round(width * scale), round(height * scale)
            left, top = (7 * i % (n - m + 1) for n, m in zip(whole.size, part_size, strict=True))
            box = (left, top, left + part_size[0], top + part_size[1])
            part = whole.crop(box).resize((width, height), Image.Resampling.LANCZOS)
        else:
            pixels = np.roll(np.asarray(whole), 16 * i, axis=1)
            more = [max(0, n - m) for n, m in zip(size, pixels.shape[:2], strict=True)]
            pixels = np.pad(pixels, ((0, more[0]), (0, more[1]), (0, 0)), mode="symmetric")
            part = Image.fromarray(np.ascontiguousarray(pixels[:height, :width]))
        files.append(_encoded(part, quality))
    return files


def _rows(
    network: nn.Module,
    files: list[bytes],
    size: int,
    threads: int,
    modes: Sequence[str],
    task: str,
    rounds: int,
    pool: ThreadPoolExecutor,
) -> Iterator[Timing]:
    from torchvision.io import ImageReadMode, decode_jpeg

    raw = [torch.frombuffer(bytearray(data), dtype=torch.uint8) for data in files]
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (IMAGENET_MEAN, IMAGENET_STD))

    def decode() -> Tensor:
        return torch.stack(list(pool.map(lambda data: decode_jpeg(data, ImageReadMode.RGB), raw)))

    def pixels() -> Tensor:
        images = decode().to(memory_format=torch.channels_last)
        return images.float().div_(255).sub_(mean).div_(std)

    def read() -> Any:
        return read_jpeg(files, num_threads=threads)

    ways: dict[str, tuple[nn.Module, Callable[[], Any]]] = {"pixels": (copy.deepcopy(network), pixels)}
    for mode in modes:
        ways[mode] = to_jpeg_domain(network, mode=mode, mean=IMAGENET_MEAN, std=IMAGENET_STD), read
    step = _inference if task == "inference" else _training
    work = {way: step(module, source) for way, (module, source) in ways.items()}
    with warnings.catch_warnings():
        # torchvision has deprecated its decoders in favor of another package
        warnings.simplefilter("ignore", DeprecationWarning)
        seconds = median_seconds(work, rounds)
        sources = median_seconds({"pixels": decode, "coefficients": read}, rounds)
    for way in ways:
        reading = sources["pixels" if way == "pixels" else "coefficients"]
        yield Timing(
            task=task,
            way=way,
            size=size,
            batch=len(files),
            threads=threads,
            images_per_second=len(files) / seconds[way],
            speedup=seconds["pixels"] / seconds[way],
            reading=reading / seconds[way],
        )


def _inference(module: nn.Module, source: Callable[[], Any]) -> Callable[[], object]:
    module.eval()

    def run() -> object:
        with torch.no_grad():
            return module(source())

    return run


def _training(module: nn.Module, source: Callable[[], Any]) -> Callable[[], object]:
    module.train()
    # steps of length 0 keep the weights, so that all rounds do the same work
    optimizer = torch.optim.SGD(module.parameters(), lr=0.0, momentum=0.9)

    def run() -> object:
        logits = module(source())
        labels = torch.arange(len(logits)) % logits.shape[1]
        optimizer.zero_grad()
        F.cross_entropy(logits, labels).backward()  # type: ignore[no-untyped-call]
        return optimizer.step()

    return run


def _files(size: int, count: int, quality: int, photo: str | None) -> list[bytes]:
    """``count`` different square JPEG files, cut from one photograph and scaled."""
    from PIL import Image

    with Image.open(PHOTO if photo is None else photo) as image:
        whole = image.convert("RGB")
    side = min(whole.size) * 9 // 10 or 1
    room = [n - side + 1 for n in whole.size]
    files = []
    for i in range(count):
        left, top = 37 * i % room[0], 11 * i % room[1]
        part: Image.Image = whole.crop((left, top, left + side, top + side)).resize((size, size))
        files.append(_encoded(part, quality))
    return files


def _encoded(image: Image.Image, quality: int) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=quality, subsampling="4:2:0")
    return buffer.getvalue()


@contextmanager
def _torch_threads(count: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)
