"""Coefficients and latents in torchvision's transforms v2.

    from torchvision.transforms import v2
    from cdzoo.interop.torchvision import V2Transform

    transform = V2Transform(v2.Compose([v2.RandomCrop(160), v2.RandomHorizontalFlip()]), snap=True)
    dataset = CoefficientDataset("photos", transform=transform)

Transforms of coefficients are exact, as in :mod:`cdzoo.jpeg.transforms`: flips, crops on the block grid, rotations by
multiples of 90 degrees. Others raise: ``ValueError`` where the sizes don't allow an exact result, ``TypeError`` for
functionals without an exact form (``resize``, ``normalize``, colors, ...). Networks over coefficients normalize by
themselves, and :class:`cdzoo.transforms.CoefficientTransform` resizes.

Latents are flipped and cropped as maps, ``y_hat`` and ``scales`` alike, in latent samples. The flip of a latent is not
the latent of the flipped image: no codec is equivariant to mirroring, and the codec's padding moves from the right to
the left. It is the augmentation that networks over latents are trained with (Torfason et al., appendix A.4), not an
operation on images.

Without a wrapper, transforms would treat a batch as a tuple of tensors and transform its first plane.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NoReturn

import torch
from torch import Tensor
from torch.utils import _pytree as pytree
from torchvision import tv_tensors
from torchvision.transforms.v2 import functional

from cdzoo.jpeg import transforms as exact
from cdzoo.types import JPEGCoefficients, Latent

__all__ = ["CoefficientTensor", "LatentTensor", "V2Transform", "unwrap", "wrap"]


class _Carrier(tv_tensors.Image):  # type: ignore[misc]  # without type hints for our mypy
    """A tensor without memory that shows transforms the shape of an image and carries a value."""

    value: Any
    snap: bool

    @staticmethod
    def __new__(cls: type[_Carrier], value: Any, *, snap: bool = False) -> _Carrier:
        shape, like = cls._appearance(value)
        made: _Carrier = torch.Tensor._make_wrapper_subclass(cls, shape, dtype=like.dtype, device=like.device)
        made.value, made.snap = value, snap
        return made

    @staticmethod
    def _appearance(value: Any) -> tuple[tuple[int, ...], Tensor]:
        """``(B, C, H, W)`` as transforms see it, and a tensor of the dtype and device."""
        raise NotImplementedError

    def replaced(self, value: Any) -> _Carrier:
        """Another value in a wrapper of the same kind and options."""
        return type(self)(value, snap=self.snap)

    def __deepcopy__(self, memo: dict[int, Any]) -> _Carrier:
        return self.replaced(pytree.tree_map_only(Tensor, torch.clone, self.value))

    def __reduce_ex__(self, protocol: Any) -> Any:
        return _restored, (type(self), self.value, self.snap)

    def __repr__(self, *, tensor_contents: Any = None) -> str:
        return f"{type(self).__name__}(shape={tuple(self.shape)}, snap={self.snap})"

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> NoReturn:
        raise TypeError(f"{cls.__name__} has no pixels for {func}; unwrap it first")


class CoefficientTensor(_Carrier):
    """``JPEGCoefficients`` as a tv_tensor: to transforms an image ``(B, K, H, W)``, sizes and corners in pixels.

    Args:
        value: the coefficients; :func:`unwrap` gives them back.
        snap: round the corners of crops down to the block grid, as :func:`cdzoo.data.center_crop` does, in place of
            raising. Boxes and masks in the same sample are not moved along.
    """

    value: JPEGCoefficients

    @staticmethod
    def _appearance(value: JPEGCoefficients) -> tuple[tuple[int, ...], Tensor]:
        plane = value.planes[0]
        return (plane.shape[0], len(value.planes), *value.image_size), plane


class LatentTensor(_Carrier):
    """A ``Latent`` as a tv_tensor: to transforms an image ``(B, M, h, w)``, sizes and corners in latent samples.

    Args:
        value: the latent; :func:`unwrap` gives it back.
        snap: without effect; latents have no block grid.
    """

    value: Latent

    @staticmethod
    def _appearance(value: Latent) -> tuple[tuple[int, ...], Tensor]:
        return tuple(value.y_hat.shape), value.y_hat


def wrap(sample: Any, *, snap: bool = False) -> Any:
    """The sample with every ``JPEGCoefficients`` and ``Latent`` in it as a tv_tensor.

    Args:
        sample: one of these, or a tuple, list or dictionary that holds some, beside anything.
        snap: see :class:`CoefficientTensor`.
    """

    def wrapped(leaf: Any) -> Any:
        if isinstance(leaf, JPEGCoefficients):
            return CoefficientTensor(leaf, snap=snap)
        return LatentTensor(leaf, snap=snap) if isinstance(leaf, Latent) else leaf

    return pytree.tree_map(wrapped, sample, is_leaf=lambda node: isinstance(node, JPEGCoefficients | Latent))


def unwrap(sample: Any) -> Any:
    """The inverse of :func:`wrap`."""
    return pytree.tree_map(lambda leaf: leaf.value if isinstance(leaf, _Carrier) else leaf, sample)


class V2Transform:
    """A transform of torchvision's v2 that takes samples with ``JPEGCoefficients`` and ``Latent`` in them.

    Args:
        transform: the transform, or a ``v2.Compose`` of several.
        snap: see :class:`CoefficientTensor`.
    """

    def __init__(self, transform: Callable[..., Any], *, snap: bool = False) -> None:
        self.transform, self.snap = transform, snap

    def __call__(self, sample: Any) -> Any:
        """The transformed sample, of the same structure; random parameters are drawn once for the whole sample.

        Raises:
            ValueError: crops off the block grid or beyond the image, flips of sizes that are not aligned.
            TypeError: the transform has no exact form.
        """
        return unwrap(self.transform(wrap(sample, snap=self.snap)))

    def __repr__(self) -> str:
        return f"V2Transform({self.transform!r}, snap={self.snap})"


def _restored(kind: type[_Carrier], value: Any, snap: bool) -> _Carrier:
    return kind(value, snap=snap)


# -- coefficients ------------------------------------------------------------------------------------------------


def _crop_coefficients(x: CoefficientTensor, top: int, left: int, height: int, width: int) -> _Carrier:
    if x.snap:
        rows, columns = exact.alignment(x.value)
        top, left = top - top % rows, left - left % columns
    return x.replaced(exact.crop(x.value, top, left, height, width))


def _rotate_coefficients(x: CoefficientTensor, angle: float, *_: Any, **options: Any) -> _Carrier:
    height, width = x.value.image_size
    if angle % 90 or options.get("center") is not None:
        raise ValueError(
            f"rotate by {angle} degrees: only multiples of 90, around the center, are exact on coefficients"
        )
    if angle % 180 and height != width and not options.get("expand"):
        raise ValueError(f"rotate: images of {height}x{width} pixels swap their sides; pass expand=True")
    return x.replaced(exact.rotate(x.value, int(angle)))


# -- latents -----------------------------------------------------------------------------------------------------


def _mapped(x: LatentTensor, function: Callable[[Tensor], Tensor], image_size: tuple[int, int]) -> _Carrier:
    y_hat, scales, _ = x.value
    return x.replaced(Latent(function(y_hat), None if scales is None else function(scales), image_size))


def _crop_latent(x: LatentTensor, top: int, left: int, height: int, width: int) -> _Carrier:
    rows, columns = x.value.y_hat.shape[-2:]
    if min(top, left) < 0 or min(height, width) < 1 or top + height > rows or left + width > columns:
        raise ValueError(f"crop of {height}x{width} at ({top}, {left}) does not lie within {rows}x{columns} samples")
    size = x.value.image_size
    cut = _pixels(size[0], rows, top, height), _pixels(size[1], columns, left, width)
    return _mapped(x, lambda t: t[..., top : top + height, left : left + width], cut)


def _pixels(size: int, samples: int, start: int, kept: int) -> int:
    """The pixels, of ``size``, that ``kept`` samples from ``start`` cover."""
    strides = [s for s in (1, 2, 4, 8, 16, 32, 64) if -(-size // s) == samples]
    if len(strides) != 1:  # one sample, or resized since
        return max(1, size * kept // samples)
    return min(size, (start + kept) * strides[0]) - start * strides[0]


# -- both --------------------------------------------------------------------------------------------------------


def _center_crop(x: Any, output_size: int | Sequence[int]) -> _Carrier:
    size = [output_size] if isinstance(output_size, int) else list(output_size)
    height, width = size[0], size[-1]
    rows, columns = x.shape[-2:]
    if height > rows or width > columns:
        raise ValueError(f"center_crop to {height}x{width}: would have to pad {rows}x{columns}; crop to less")
    top, left = round((rows - height) / 2), round((columns - width) / 2)  # as torchvision rounds
    crop: Callable[..., _Carrier] = _crop_coefficients if isinstance(x, CoefficientTensor) else _crop_latent
    return crop(x, top, left, height, width)


def _refusal(name: str) -> Callable[..., NoReturn]:
    def refuse(x: _Carrier, *_: Any, **__: Any) -> NoReturn:
        forms = sorted(f.__name__ for f in _FORMS[type(x)] if not f.__name__.startswith("get_"))
        raise TypeError(
            f"{name} has no exact form on a {type(x).__name__}; there are {', '.join(forms)}; leave it out of the "
            "transforms, or apply it to images"
        )

    return refuse


_QUESTIONS: dict[Callable[..., Any], Callable[..., Any]] = {
    functional.get_size: lambda x: list(x.shape[-2:]),
    functional.get_dimensions: lambda x: list(x.shape[-3:]),
    functional.get_num_channels: lambda x: int(x.shape[-3]),
}
_FORMS: dict[type, dict[Callable[..., Any], Callable[..., Any]]] = {
    CoefficientTensor: {
        functional.horizontal_flip: lambda x: x.replaced(exact.horizontal_flip(x.value)),
        functional.vertical_flip: lambda x: x.replaced(exact.vertical_flip(x.value)),
        functional.crop: _crop_coefficients,
        functional.center_crop: _center_crop,
        functional.rotate: _rotate_coefficients,
        **_QUESTIONS,
    },
    LatentTensor: {
        functional.horizontal_flip: lambda x: _mapped(x, lambda t: t.flip(-1), x.value.image_size),
        functional.vertical_flip: lambda x: _mapped(x, lambda t: t.flip(-2), x.value.image_size),
        functional.crop: _crop_latent,
        functional.center_crop: _center_crop,
        **_QUESTIONS,
    },
}


def _register() -> None:
    """Register a kernel for every functional; without one, the kernels for pixels would be called."""
    for name, function in vars(functional).items():
        dispatches = callable(function) and str(getattr(function, "__module__", "")).startswith(functional.__name__)
        if dispatches and not isinstance(function, type) and function.__name__ == name and name != "register_kernel":
            for kind, forms in _FORMS.items():
                functional.register_kernel(function, kind)(forms.get(function, _refusal(name)))


_register()
