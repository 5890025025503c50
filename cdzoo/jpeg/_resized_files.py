"""JPEG files of any sizes to one batch of resized coefficients."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from cdzoo._threads import for_each
from cdzoo.jpeg._reader import ALL_ROWS, JPEGFile, MissingBlocks, decode_files
from cdzoo.jpeg.geometry import upright_size
from cdzoo.jpeg.kernels.layout import EVERYTHING, WANTED
from cdzoo.jpeg.kernels.plan import WORKSPACE, load_kernels, make_plan
from cdzoo.jpeg.resize import (
    Placement,
    ResizePlan,
    as_result,
    empty_result,
    finish_colors,
    plan_resize,
    resize_coefficients,
    resize_planes,
)
from cdzoo.jpeg.transforms import upright as undo_orientation
from cdzoo.types import JPEGCoefficients

__all__ = ["read_transformed"]


def read_transformed(
    files: Sequence[JPEGFile], transform: Callable[[JPEGCoefficients], JPEGCoefficients], num_threads: int
) -> tuple[JPEGCoefficients, list[MissingBlocks | None]]:
    """Read files of any geometries, each of them transformed, into one batch.

    Returns:
        the batch, and the losses of each file.

    Raises:
        JPEGError: a strict file is damaged.
        ValueError: the results' geometries differ.
    """
    turned = getattr(transform, "upright", False)
    orientations = [file.opening.header.orientation if turned else 1 for file in files]
    place: Any = getattr(transform, "place", None)
    sizes = [upright_size(file.opening.geometry.image_size, n) for file, n in zip(files, orientations, strict=True)]
    found = [None if place is None else place(size) for size in sizes]
    placements: list[Placement] = [placement for placement in found if placement is not None]
    if len(placements) < len(files):
        return _read_one_by_one(files, orientations, transform, num_threads)
    for file, placement in zip(files, placements, strict=True):
        if placement.size != placements[0].size:
            raise ValueError(
                f"the files of a batch must have one size after the transform: {file.name} has "
                f"{placement.size[0]}x{placement.size[1]} px, but {files[0].name} "
                f"{placements[0].size[0]}x{placements[0].size[1]}; give the transform crop=, or resize=(h, w)"
            )
    out = empty_result(len(files), placements[0].size)
    chroma: str = transform.chroma  # type: ignore[attr-defined]

    def read(i: int) -> MissingBlocks | None:
        return _read_resized(files[i], placements[i], chroma, orientations[i], [plane[i] for plane in out])

    losses = for_each(read, len(files), num_threads)
    return as_result(out, placements[0].size), losses


def _read_resized(
    file: JPEGFile, placement: Placement, chroma: str, orientation: int, out: list[Any]
) -> MissingBlocks | None:
    geometry = file.opening.geometry
    if geometry.color_space in ("cmyk", "ycck"):
        planes, qtables, loss = _decoded(file)
        whole = JPEGCoefficients(planes, qtables, *geometry)
        resized = resize_coefficients(whole, [placement], chroma=chroma, orientation=orientation)
        for plane, target in zip(resized.planes, out, strict=True):
            target[...] = plane[0].numpy()
        return loss
    plan = plan_resize(*geometry, chroma, orientation, placement)
    if _read_in_one_pass(file, plan, out):
        return None
    # strict means that damage anywhere raises: then all rows are decoded
    wanted = _wanted_blocks(plan)
    planes, qtables, loss = _decoded(file, ALL_ROWS if file.strict else wanted["last_row"].copy(), wanted)
    tables = qtables.numpy().astype(np.float32).reshape(len(planes), 64)
    resize_planes([plane[0].numpy() for plane in planes], tables, plan, out)
    return loss


def _read_in_one_pass(file: JPEGFile, plan: ResizePlan, out: list[Any]) -> bool:
    """Decode and resize together.

    Returns false unless the file is sequential, intact and has one scan.
    """
    opening = file.opening
    if opening.frame.kind == "progressive":
        return False
    decoding = make_plan(opening, all_wanted=False)
    if decoding is None:
        return False
    assert opening.qtables is not None
    run, kernels = load_kernels().run, _kernels()
    tables = opening.qtables.astype(np.float32)
    targets = [
        kernels.Target(*plan.axes[k], tables[k], plan.fills[k], out[k].reshape(-1)) for k in range(len(plan.axes))
    ]
    done = run(
        kernels.decode_resized,
        np.frombuffer(file.data, np.uint8),
        opening.marker,
        WORKSPACE.segment(len(file.data)),
        *decoding,
        WORKSPACE.state,
        WORKSPACE.band(opening.frame),
        tuple(targets * 3)[:3],
        plan.flips,
        file.strict,
    )
    if done:
        finish_colors(plan.color_space, out)
    return bool(done)


@cache
def _kernels() -> Any:
    from cdzoo.jpeg.kernels import resized_files

    return resized_files


def _wanted_blocks(plan: ResizePlan) -> NDArray[Any]:
    """Blocks of each component on which the result depends."""
    wanted = np.zeros(4, WANTED)
    for k, axes in enumerate(plan.axes):
        for name, axis in zip(("row", "column"), axes, strict=True):
            used = np.flatnonzero(axis.blocks[:, 1])
            if used.size:
                wanted[f"first_{name}"][k], wanted[f"last_{name}"][k] = used[0], used[-1] + 1
    return wanted


def _decoded(
    file: JPEGFile, needed: NDArray[np.int64] = ALL_ROWS, wanted: NDArray[Any] = EVERYTHING
) -> tuple[tuple[Tensor, ...], Tensor, MissingBlocks | None]:
    grids = file.opening.geometry.blocks
    planes = tuple([torch.from_numpy(np.empty((1, *grid, 8, 8), np.int16)) for grid in grids])
    qtables = torch.from_numpy(np.empty((1, len(grids), 8, 8), np.int32))
    (loss,) = decode_files([file], planes, qtables, 1, needed, wanted)
    return planes, qtables, loss


def _read_one_by_one(
    files: Sequence[JPEGFile],
    orientations: Sequence[int],
    transform: Callable[[JPEGCoefficients], JPEGCoefficients],
    num_threads: int,
) -> tuple[JPEGCoefficients, list[MissingBlocks | None]]:
    losses: list[MissingBlocks | None] = [None] * len(files)

    def read(i: int) -> JPEGCoefficients:
        planes, qtables, losses[i] = _decoded(files[i])
        coefficients = JPEGCoefficients(planes, qtables, *files[i].opening.geometry)
        try:
            coefficients = undo_orientation(coefficients, orientations[i])
        except ValueError as error:
            raise ValueError(
                f"{files[i].name} cannot be turned upright (orientation {orientations[i]}) by whole blocks: {error}; "
                "give the transform resize= or crop=, or upright=False"
            ) from error
        return transform(coefficients)

    results = for_each(read, len(files), num_threads)
    first = results[0]
    for file, result in zip(files, results, strict=True):
        if result[2:] != first[2:]:
            raise ValueError(
                f"the files of a batch must have the same geometry after the transform: {file.name} has {result[2:]}, "
                f"but {files[0].name} has {first[2:]}; a CoefficientTransform with crop= gives all files one"
            )
    planes = tuple(torch.cat(parts) for parts in zip(*[result.planes for result in results], strict=True))
    batch = first._replace(planes=planes, qtables=torch.cat([result.qtables for result in results]))
    return batch, losses
