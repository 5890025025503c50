"""Whole archives on a cluster, with Ray: images to shards of streams, streams and JPEG files to labels.

    ray.init()
    compress(codec, "photos", "photos-cdz")                   # shards of .cdz streams, and a table of the files
    classify(compose(codec, model), "photos-cdz", "labels")   # Parquet tables
    ray.data.read_parquet("labels").filter(lambda row: row["error"] is None)

Each worker is an actor that holds the codec, and takes a part at a time: a shard, or ``part_size`` files of a folder.
A part's result appears under its name only when it is complete. If a worker dies, its part is started again; no file is
lost or processed twice. A run that was stopped continues when it is started again. A file that cannot be read is a row
with an ``error``; the others are processed.

All workers must see source and output under the same paths: a shared file system, or one machine.
"""

from __future__ import annotations

import math
import os
import pickle
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import torch
from torch import nn

from cdzoo._text import missing_package

try:
    import ray
    import ray.cloudpickle
    from ray.util import ActorPool
except ModuleNotFoundError as error:
    raise missing_package(error, "interop") from error

from cdzoo._checks import check_size
from cdzoo._files import remove_leftovers
from cdzoo.bulk.classify import Classify
from cdzoo.bulk.compress import CompressTask
from cdzoo.bulk.engine import Task
from cdzoo.bulk.plan import BulkSummary, Part, make_plan, summarize, unfinished
from cdzoo.codecs import MAX_IMAGE_PIXELS, Codec
from cdzoo.data._decode import MAX_STREAM_BYTES
from cdzoo.data._webdataset import Paths

__all__ = ["BulkSummary", "classify", "compress"]

_TRIES = 3


def compress(
    codec: Codec,
    source: Paths,
    output: str | os.PathLike[str],
    *,
    labels: bool = False,
    max_side: int | None = None,
    part_size: int = 1000,
    batch_size: int = 16,
    max_pixels: int | None = MAX_IMAGE_PIXELS,
    max_stream_bytes: int = MAX_STREAM_BYTES,
    concurrency: int | None = None,
    num_cpus: float = 1,
    num_gpus: float = 0,
) -> BulkSummary:
    """Compress images to shards that :class:`~cdzoo.data.StreamShards` and :class:`~cdzoo.data.StreamDataset` read.

    Writes ``part-000000.tar`` and, when it is complete, ``part-000000.parquet``: a row for each image with ``file``,
    ``sample`` (its name in the shard), ``bytes``, ``height``, ``width``, ``error``.

    Args:
        codec: the codec; every worker gets a copy.
        source: a folder of images, with its subfolders; or WebDataset shards with image members, as a path, a glob, a
            brace list, or a sequence of these.
        output: folder for the results, which the workers see too.
        labels: write class numbers beside the streams: of a folder, its class subfolders in alphabetical order; of
            shards, their ``.cls`` members.
        max_side: reduce images whose longer side has more pixels, before they are compressed.
        part_size: images of a folder in a part, and so in a shard. Each input shard is one part.
        batch_size: largest number of images of one size that are encoded together.
        max_pixels: refuse images of more pixels.
        max_stream_bytes: refuse files of more bytes.
        concurrency: number of workers; by default, as many as fit the cluster's CPUs (or GPUs).
        num_cpus, num_gpus: resources of one worker; with a GPU, networks run there.

    Returns:
        counts of all results in ``output``.

    Raises:
        FileNotFoundError: no image there.
        ValueError: invalid options, or results of another run in ``output``.
        OSError: results cannot be written.
        RuntimeError: parts whose workers died repeatedly; the message names them. Finished parts stay.
    """
    task = CompressTask(
        codec,
        max_side=max_side,
        batch_size=batch_size,
        max_pixels=max_pixels,
        max_stream_bytes=max_stream_bytes,
        with_labels=labels,
    )
    return _run(task, source, Path(output), part_size, concurrency, num_cpus, num_gpus)


def classify(
    model: nn.Module,
    source: Paths,
    output: str | os.PathLike[str],
    *,
    top: int = 5,
    strict: bool = False,
    fallback: Literal["decode"] | None = None,
    transforms: Callable[[Any], Any] | None = None,
    part_size: int = 1000,
    batch_size: int = 16,
    max_pixels: int | None = MAX_IMAGE_PIXELS,
    max_stream_bytes: int = MAX_STREAM_BYTES,
    concurrency: int | None = None,
    num_cpus: float = 1,
    num_gpus: float = 0,
) -> BulkSummary:
    """Classify ``.cdz`` streams or JPEG files; pixels are not decoded.

    Writes ``part-000000.parquet`` and so on: a row for each file with ``file`` (its path below the folder, or its name
    in the shard), ``classes``, ``labels`` and ``probabilities`` (lists, the most probable first), ``damage`` (of a JPEG
    file that was read as far as possible), ``error``.

    Args:
        model: a module of :func:`cdzoo.compose`, for streams; or a network over JPEG coefficients
            (``cdzoo.models.jpeg_resnet18``, :func:`cdzoo.ops.to_jpeg_domain`), for JPEG files, which are turned as
            their Exif data say.
        source: a folder of such files, with its subfolders; or shards, as for :func:`compress`.
        output: folder for the results, which the workers see too.
        top: number of classes in a row.
        transforms: for JPEG networks, applied to each file's coefficients; by default the network's own.
        strict: report damaged JPEG files as errors; otherwise they are read as far as possible.
        fallback: ``"decode"`` lets Pillow decode files that are no JPEG files in spite of their name; by default, they
            are errors.
        part_size, batch_size, max_pixels, max_stream_bytes, concurrency, num_cpus, num_gpus: as for :func:`compress`.

    Returns:
        counts of all results in ``output``.

    Raises:
        TypeError: a network over latents without its codec.
        FileNotFoundError, ValueError, OSError, RuntimeError: as for :func:`compress`.
    """
    task = Classify(
        model,
        top=top,
        strict=strict,
        fallback=fallback,
        transforms=transforms,
        batch_size=batch_size,
        max_pixels=max_pixels,
        max_stream_bytes=max_stream_bytes,
    )
    return _run(task, source, Path(output), part_size, concurrency, num_cpus, num_gpus)


class _Worker:
    """An actor that holds a task and processes parts."""

    def __init__(self, task: Task, output: str, num_cpus: float, on_gpu: bool) -> None:
        torch.set_num_threads(max(1, int(num_cpus)))
        self.task, self.output = task, Path(output)
        if on_gpu:
            self.task.to("cuda")

    def write_part(self, part: Part) -> bytes:
        """Process a part; returns the error that it raised, pickled, or nothing."""
        try:
            self.task.write_part(part, self.output)
        except Exception as error:  # pickled, since Ray would pass on only its text
            error.add_note(f"in {part.table}, {part.shard or part.folder}\n{traceback.format_exc()}")
            return _pickled(error)
        return b""


def _pickled(error: Exception) -> bytes:
    """An error, or its text where it cannot be taken apart and put together again."""
    try:
        data: bytes = ray.cloudpickle.dumps(error)
        ray.cloudpickle.loads(data)
    except Exception:
        return pickle.dumps(RuntimeError("\n".join([f"{type(error).__name__}: {error}", *error.__notes__])))
    return data


def _workers(concurrency: int | None, num_cpus: float, num_gpus: float) -> int:
    """The number of workers to start.

    Raises:
        ValueError: the cluster can never start one.
    """
    if not ray.is_initialized():
        ray.init()
    have: dict[str, float] = ray.cluster_resources()
    room = min(have.get("CPU", 0) // num_cpus, have.get("GPU", 0) // num_gpus if num_gpus else math.inf)
    if room < 1:
        raise ValueError(
            f"num_cpus={num_cpus} and num_gpus={num_gpus} for a worker, but Ray has {have.get('CPU', 0):g} CPUs and "
            f"{have.get('GPU', 0):g} GPUs: ask for less, or start it with more"
        )
    return int(room) if concurrency is None else concurrency


def _run(
    task: Task, source: Paths, output: Path, part_size: int, concurrency: int | None, num_cpus: float, num_gpus: float
) -> BulkSummary:
    if concurrency is not None:
        check_size("concurrency", concurrency)
    if num_cpus <= 0 or num_gpus < 0:
        raise ValueError(f"num_cpus must be above 0 and num_gpus not below, not {num_cpus} and {num_gpus}")
    output = Path(os.path.abspath(output))
    parts = make_plan(
        source, output, suffixes=task.suffixes, facts=task.facts, with_labels=task.with_labels, part_size=part_size
    )
    todo = unfinished(parts, output)
    remove_leftovers(output)
    if todo:
        workers = min(_workers(concurrency, num_cpus, num_gpus), len(todo))
        # max_restarts is for one worker, over all the parts that it takes
        worker: Any = ray.remote(_Worker).options(
            num_cpus=num_cpus, num_gpus=num_gpus, max_restarts=_TRIES * workers, max_task_retries=_TRIES
        )
        shared = ray.put(task)  # one copy for all workers of a machine, and for those that replace them
        actors = [worker.remote(shared, os.fspath(output), num_cpus, num_gpus > 0) for _ in range(workers)]
        try:
            for error in ActorPool(actors).map_unordered(lambda actor, part: actor.write_part.remote(part), todo):
                if error:
                    raise ray.cloudpickle.loads(error)
        except ray.exceptions.RayError as error:
            missing = unfinished(parts, output)
            names = ", ".join(f"{part.table} ({part.shard or part.files[0]})" for part in missing[:3])
            raise RuntimeError(
                f"{len(missing)} of {len(parts)} parts are not finished, among them those whose workers died; first "
                f"{names} ({error}); start the same run again to continue"
            ) from error
        finally:
            for actor in actors:
                ray.kill(actor)
    return summarize(parts, output, skipped=len(parts) - len(todo))
