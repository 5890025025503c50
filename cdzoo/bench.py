"""Times from the bytes of files to logits, through coefficients and through pixels, for ``cdzoo bench``.

Every round runs each way once on the same files, in a rotating order, and medians over the rounds are compared. So a
machine that slows down slows all ways alike. The pixel way decodes with libjpeg-turbo, through torchvision, in as many
threads as the network has. Both networks have the same weights in the same memory format.
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
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cdzoo.codecs import read_jpeg
from cdzoo.demo import PHOTO
from cdzoo.jpeg.nn.preprocessing import IMAGENET_MEAN, IMAGENET_STD
from cdzoo.ops import to_jpeg_domain

if TYPE_CHECKING:
    from PIL import Image

__all__ = ["Timing", "bench_jpeg", "median_seconds"]


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
    """Time a network on JPEG files through each form, and on decoded pixels.

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
    for name, values in {"sizes": sizes, "batch": [batch], "threads": threads, "rounds": [rounds]}.items():
        if not values or min(values) < 1:
            raise ValueError(f"{name}={values}: give numbers of at least 1")
    if not 1 <= quality <= 95:
        raise ValueError(f"quality={quality}: give 1 to 95, as Pillow recommends")
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


def median_seconds(tasks: dict[str, Callable[[], object]], rounds: int) -> dict[str, float]:
    """Seconds of each task: medians over rounds in which every task runs once, after a warm-up of each.

    A task whose warm-up takes more than three seconds is timed once, since noise matters less there.
    """
    names = list(tasks)
    times: dict[str, list[float]] = {name: [] for name in names}
    long = set()
    for name, task in tasks.items():
        begin = time.perf_counter()
        task()
        if time.perf_counter() - begin > 3:
            long.add(name)
    for turn in range(rounds):
        start = turn % len(names)
        for name in names[start:] + names[:start]:
            if turn and name in long:
                continue
            begin = time.perf_counter()
            tasks[name]()
            times[name].append(time.perf_counter() - begin)
    return {name: statistics.median(values) for name, values in times.items()}


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
        buffer = io.BytesIO()
        part.save(buffer, "JPEG", quality=quality, subsampling="4:2:0")
        files.append(buffer.getvalue())
    return files


@contextmanager
def _torch_threads(count: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)
