"""Samples to batches."""

from __future__ import annotations

import operator
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch.utils.data import default_collate
from torch.utils.data._utils.collate import default_collate_fn_map

from cdzoo.types import JPEGCoefficients, Latent

__all__ = ["collate_coefficients", "collate_latents"]

T = TypeVar("T", Latent, JPEGCoefficients)


def collate_latents(samples: Sequence[Latent] | Sequence[tuple[Any, ...]]) -> Latent | tuple[Any, ...]:
    """Collate function for latents of equal shape, with or without labels.

    A ``DataLoader`` without a collate function does the same. A batch, such as an item of
    :class:`~cdzoo.data.StreamShards` with a ``batch_size``, passes through. Image sizes may differ as long as the
    shapes agree, for instance after :class:`~cdzoo.transforms.LatentTransform` has resized the latents; the batch then
    has the ``image_size`` of its first latent.

    Args:
        samples: latents ``(b, M, h, w)`` of equal shape, or tuples of such a latent (``b = 1``), its label and
            further fields.

    Returns:
        one latent ``(B, M, h, w)``, or a tuple of it, the labels (``(B,)`` int64 if all are integers), and the further
        fields; other labels and further fields go through ``torch.utils.data.default_collate``.

    Raises:
        ValueError: no samples, unequal shapes, labels or scales in some samples only.
        TypeError: samples of another kind.
    """
    return _collate(samples, Latent, _join_latents, "collate_latents")


def collate_coefficients(
    samples: Sequence[JPEGCoefficients] | Sequence[tuple[Any, ...]],
) -> JPEGCoefficients | tuple[Any, ...]:
    """Collate function for JPEG coefficients of one geometry, with or without labels.

    A ``DataLoader`` without a collate function does the same. A batch, such as an item of
    :class:`~cdzoo.data.CoefficientShards` with a ``batch_size``, passes through. Samples that are adjacent in memory,
    as from a dataset without a transform, are not copied: the batch shares their memory.

    Args:
        samples: coefficients with ``planes`` ``K x (b, Hb, Wb, 8, 8)``, or tuples of such (``b = 1``), a label and
            further fields.

    Returns:
        coefficients with ``planes`` ``K x (B, Hb, Wb, 8, 8)``, or a tuple of them, the labels (``(B,)`` int64 if all
        are integers), and the further fields; other labels and further fields go through
        ``torch.utils.data.default_collate``.

    Raises:
        ValueError: no samples, labels in some only, or unequal image sizes, sampling factors, color spaces or shapes.
        TypeError: samples of another kind.
    """
    return _collate(samples, JPEGCoefficients, _join_coefficients, "collate_coefficients")


def _collate(samples: Any, kind: type[T], join: Callable[[Sequence[T]], T], name: str) -> T | tuple[Any, ...]:
    if isinstance(samples, kind) or _is_batch(samples, kind):
        return samples  # type: ignore[no-any-return]
    if not samples:
        raise ValueError(f"{name} got no samples; pass at least one")
    rows = [(sample,) if isinstance(sample, kind) else sample for sample in samples]
    for row in rows:
        if not (isinstance(row, tuple | list) and row and isinstance(row[0], kind)):
            raise TypeError(f"{name} takes {kind.__name__}, or tuples that begin with one, not {type(row).__name__}")
    lengths = {len(row) for row in rows}
    if len(lengths) > 1:
        raise ValueError(
            f"{name} got samples with labels and samples without, or with unequally many fields, {sorted(lengths)}; "
            "all must have the same"
        )
    first, *rest = map(list, zip(*rows, strict=True))
    if not rest:
        return join(first)
    for fields in rest:
        if any(isinstance(field, kind) for field in fields):
            raise TypeError(f"{name} takes one {kind.__name__} for each sample, at its beginning; collate others apart")
    return join(first), _collate_labels(rest[0]), *map(default_collate, rest[1:])


def _is_batch(samples: Any, kind: type) -> bool:
    """A tuple of a batch and its labels, as opposed to several samples."""
    return (
        isinstance(samples, tuple)
        and len(samples) > 1
        and isinstance(samples[0], kind)
        and not any(isinstance(field, kind) or _begins_with(field, kind) for field in samples[1:])
    )


def _begins_with(field: Any, kind: type) -> bool:
    return isinstance(field, tuple | list) and len(field) > 0 and isinstance(field[0], kind)


def _collate_labels(labels: list[Any]) -> Any:
    try:
        return torch.tensor([operator.index(label) for label in labels], dtype=torch.int64)
    except TypeError:
        return default_collate(labels)


def _join_latents(latents: Sequence[Latent]) -> Latent:
    shapes = {tuple(latent.y_hat.shape[1:]) for latent in latents}
    if len(shapes) > 1:
        sizes = sorted({latent.image_size for latent in latents})
        raise ValueError(
            f"latents of unequal shapes {sorted(shapes)} in one batch, of images of {sizes}; group samples by "
            "image_size, as cdzoo.data.SizeBucketSampler does, or resize the latents in the dataset's transform"
        )
    scales = [latent.scales for latent in latents if latent.scales is not None]
    if scales and len(scales) != len(latents):
        raise ValueError(f"{len(scales)} of {len(latents)} latents have scales; all or none must")
    return Latent(
        torch.cat([latent.y_hat for latent in latents]), torch.cat(scales) if scales else None, latents[0].image_size
    )


def _join_coefficients(files: Sequence[JPEGCoefficients]) -> JPEGCoefficients:
    first = files[0]
    for number, file in enumerate(files):
        if file[2:] != first[2:]:
            raise ValueError(
                f"coefficients of unequal geometry in one batch: sample 0 is {_geometry(first)}, and sample {number} "
                f"{_geometry(file)}; group the files, as cdzoo.data.SizeBucketSampler does, bring them to one size "
                "in the dataset's transform, or, if only gray files differ, give the dataset gray='ycbcr'"
            )
    shapes = [[tuple(plane.shape[1:]) for plane in file.planes] for file in files]
    for number, own in enumerate(shapes):
        if own != shapes[0]:
            raise ValueError(
                f"coefficients of one geometry, {_geometry(first)}, with planes of unequal shapes in one batch: "
                f"{shapes[0]} in sample 0, {own} in sample {number}; a transform that cuts or pads planes has to say "
                "so in image_size"
            )
    planes = zip(*[file.planes for file in files], strict=True)
    return first._replace(planes=tuple(map(_cat, planes)), qtables=_cat([file.qtables for file in files]))


def _geometry(file: JPEGCoefficients) -> str:
    height, width = file.image_size
    return f"{height}x{width} pixels of {file.color_space!r}, sampling {file.sampling}"


def _cat(parts: Sequence[Tensor]) -> Tensor:
    """``torch.cat`` without a copy where the parts are adjacent and fill their storage."""
    first, end = parts[0], 0
    storage = first.untyped_storage()
    for part in parts:
        if (
            not part.is_contiguous()
            or part.dtype != first.dtype
            or part.storage_offset() != end
            or part.untyped_storage().data_ptr() != storage.data_ptr()
        ):
            return torch.cat(list(parts))
        end += part.numel()
    if end * first.element_size() != storage.nbytes():
        return torch.cat(list(parts))
    return first.as_strided((sum(len(part) for part in parts), *first.shape[1:]), first.stride())


# PyTorch's way to teach its default collate function a type; it would turn image sizes into tensors otherwise.
default_collate_fn_map[Latent] = lambda samples, *, collate_fn_map=None: collate_latents(samples)
default_collate_fn_map[JPEGCoefficients] = lambda samples, *, collate_fn_map=None: collate_coefficients(samples)
