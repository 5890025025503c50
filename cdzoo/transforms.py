"""Transforms of a network's input: of a codec's latents, or of a file's coefficients.

Exact flips, rotations and crops of JPEG coefficients are in ``cdzoo.jpeg.transforms``; :mod:`cdzoo.data` exports them.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar, TypeAlias

import torch
import torch.nn.functional as F
from torch import Tensor

from cdzoo._checks import check_choice, check_flag, check_is_latent, integer
from cdzoo.jpeg.geometry import CHROMA
from cdzoo.types import JPEGCoefficients, Latent

if TYPE_CHECKING:
    from cdzoo.jpeg.resize import Placement

__all__ = ["CoefficientTransform", "InputTransform", "LatentTransform", "RandomResizedCrop", "transform_from_config"]


@dataclass(frozen=True)
class LatentTransform:
    """Prepare a :class:`~cdzoo.types.Latent` for a network: subtract channel means, resize by nearest neighbor.

    Deng and Karam (sec. 5.3) bring latents and scales to 28x28 by nearest neighbor; Torfason et al. (A.4)
    subtract the training set's mean of each latent channel; Wang et al. do neither. ``weights.transforms()`` returns
    the instance that a set of weights was trained with, and ``cdzoo.compose`` applies it.

    Attributes:
        size: rows and columns that latent and scales are resized to; ``None`` leaves them as they are.
        mean: one value per latent channel, subtracted from ``y_hat`` before resizing; ``None`` subtracts nothing.
    """

    size: tuple[int, int] | None = None
    mean: tuple[float, ...] | None = None

    def __post_init__(self) -> None:
        if self.size is None:
            return
        if not isinstance(self.size, list | tuple) or len(self.size) != 2:
            raise ValueError(f"LatentTransform size must be two positive integers or None, not {self.size!r}.")
        object.__setattr__(self, "size", _size("LatentTransform size", self.size, single=False))

    def __call__(self, latent: Latent) -> Latent:
        """``y_hat`` and ``scales`` ``(B, M, h, w)`` to ``(B, M, *size)``; ``image_size`` is kept.

        Returns:
            a latent in the dtypes of the given one; without ``size`` of the same shape.

        Raises:
            TypeError: not a :class:`~cdzoo.types.Latent`.
            ValueError: ``mean`` has not got ``M`` values.
        """
        check_is_latent("LatentTransform", latent)
        y_hat, scales = latent.y_hat, latent.scales
        if self.mean is not None:
            if len(self.mean) != y_hat.shape[1]:
                raise ValueError(
                    f"LatentTransform has a mean of {len(self.mean)} channels, but y_hat has {y_hat.shape[1]}: the "
                    "transform belongs to another codec; give one value per latent channel, or mean=None"
                )
            y_hat = y_hat - torch.tensor(self.mean, dtype=y_hat.dtype, device=y_hat.device).view(1, -1, 1, 1)
        if self.size is not None:
            y_hat = _nearest(y_hat, self.size)
            scales = None if scales is None else _nearest(scales, self.size)
        return latent._replace(y_hat=y_hat, scales=scales)

    def config(self) -> dict[str, object]:
        """A JSON-ready description; ``LatentTransform.from_config`` reads it back."""
        return {
            "size": None if self.size is None else list(self.size),
            "mean": None if self.mean is None else list(self.mean),
        }

    @classmethod
    def from_config(cls, config: dict[str, object]) -> LatentTransform:
        """The transform that :meth:`config` described.

        Raises:
            ValueError: an unknown key or a value of the wrong form.
        """
        unknown = set(config) - {"size", "mean"}
        if unknown:
            raise ValueError(f"LatentTransform has no setting {sorted(unknown)}; it has size and mean")
        size: Any = config.get("size")
        mean = config.get("mean")
        if mean is not None and not isinstance(mean, list | tuple):
            raise ValueError(f"LatentTransform mean must be a list of numbers or None, not {mean!r}")
        return cls(size, None if mean is None else tuple(float(m) for m in mean))


@dataclass(frozen=True)
class CoefficientTransform:
    """Prepare JPEG files for a network: photographs of any size and sampling at the size that the network reads.

    With ``resize`` or ``crop``, what torchvision's ``Resize(antialias=True)`` and ``CenterCrop`` do to pixels happens
    between coefficients, by one matrix per axis: dequantization, inverse DCT, chroma upsampling, resizing and crop are
    all linear. The result equals the same steps on the linear decode (:func:`cdzoo.codecs.decode_jpeg` with
    ``clamp=False``) to 2e-5 of the range of pixels. It is always ``"ycbcr"`` with float32 planes of the resized
    picture, tables of ones and sampling 1x1, so that every JPEG-domain network takes it, and files of all color
    spaces go into one batch.

    With ``shorter_side``, files stay what they are and are reduced by 1, 2, 4 or 8, by the low-frequency corner of
    every block (:func:`cdzoo.data.downscale`). With nothing, they keep their size.

    Attributes:
        resize: pixels of the shorter side after resizing, or ``(h, w)``; ``None`` keeps the size.
        crop: ``(h, w)`` of the center that is kept, or one number for both; black is added where the picture is
            smaller. ``None`` keeps all.
        interpolation: ``"bilinear"`` or ``"bicubic"``, both with antialiasing.
        chroma: upsampling of chroma, ``"fancy"`` (libjpeg's default) or ``"nearest"``.
        upright: whether the Exif orientation is undone. Coefficients do not carry it, so this acts where files are
            read: in :func:`cdzoo.codecs.read_jpeg` and the datasets. With ``resize`` or ``crop``, it is exact at any
            size. Otherwise whole blocks change places, see :func:`cdzoo.data.upright`: a stored side
            that is mirrored loses the pixels behind its last whole cell of blocks (up to 15 for 4:2:0). A picture
            without a whole cell there cannot be mirrored: ``read_jpeg`` raises, datasets and ``cdzoo.classify`` leave
            it as it is stored.
        shorter_side: pixels that the shorter side comes closest to, in ratio.

    Raises:
        ValueError: a size that is not a positive integer (or two, ``(h, w)``), ``shorter_side`` together with
            ``resize`` or ``crop``, an unknown ``interpolation`` or ``chroma``, or an ``upright`` that is not a boolean.
    """

    resize: int | tuple[int, int] | None = None
    crop: int | tuple[int, int] | None = None
    interpolation: str = "bilinear"
    chroma: str = "fancy"
    upright: bool = True
    shorter_side: int | None = field(default=None, kw_only=True)

    def __post_init__(self) -> None:
        side = self.shorter_side
        if side is not None and (integer(side) or 0) < 1:
            raise ValueError(f"CoefficientTransform shorter_side must be a positive integer or None, not {side!r}")
        if side is not None and (self.resize is not None or self.crop is not None):
            raise ValueError(
                f"shorter_side={side} reduces files by powers of two, without resize and crop; give resize={side}"
            )
        _check_options("CoefficientTransform", self.interpolation, self.chroma, self.upright)
        # frozen: lists, as config files have them, become tuples once; NumPy's integers become Python's
        object.__setattr__(self, "shorter_side", integer(side))
        object.__setattr__(self, "resize", _size("resize", self.resize, single=True))
        object.__setattr__(self, "crop", _size("crop", self.crop, single=False))

    def __call__(self, coefficients: JPEGCoefficients) -> JPEGCoefficients:
        """A batch of files of one geometry, at the transform's size.

        Returns:
            with ``resize`` or ``crop``: color space ``"ycbcr"``, ``planes`` ``3 x (B, hb, wb, 8, 8)`` in float32,
            tables of ones, sampling 1x1. With a ``shorter_side`` that reduces the files: ``planes`` in float32 (float64
            stays), tables of ones, the same color space and sampling. Otherwise the batch that was given.

        Raises:
            TypeError: something else, such as pixels.
            JPEGError: sampling factors that don't divide each other.
        """
        from cdzoo.jpeg.planes import check_coefficients

        check_coefficients(coefficients)
        place = self.place(coefficients.image_size)
        if place is not None:
            return _resized(coefficients, [place] * len(coefficients.qtables), self.chroma)
        factor = self.factor(coefficients.image_size)
        if factor == 1:
            return coefficients
        from cdzoo.jpeg.transforms import downscale

        return downscale(coefficients, factor)

    @property
    def resizes(self) -> bool:
        """True with ``resize`` or ``crop``: the transform then runs while files are read."""
        return self.resize is not None or self.crop is not None

    @property
    def size(self) -> tuple[int, int] | None:
        """``(h, w)`` of every result; ``None`` if it depends on the file."""
        size = self.resize if self.crop is None else self.crop
        return size if isinstance(size, tuple) else None

    def factor(self, image_size: tuple[int, int]) -> int:
        """The factor 1, 2, 4 or 8 by which ``shorter_side`` reduces images of this size ``(H, W)``."""
        if self.shorter_side is None:
            return 1
        ratio = min(image_size) / self.shorter_side
        return min((1, 2, 4, 8), key=lambda factor: abs(math.log(ratio / factor)))

    def place(self, image_size: tuple[int, int]) -> Placement | None:
        """The part of an upright picture ``(H, W)`` that is resized, and to which size; ``None`` without resizing."""
        if not self.resizes:
            return None
        from cdzoo.jpeg.resize import Placement

        if isinstance(self.resize, int):
            short, long = sorted(image_size)
            other = int(self.resize * long / short)
            resized = (self.resize, other) if image_size[0] <= image_size[1] else (other, self.resize)
        else:
            resized = self.resize or image_size
        crop = resized if self.crop is None else self.crop
        assert isinstance(crop, tuple)
        first = (_crop_start(resized[0], crop[0]), _crop_start(resized[1], crop[1]))
        return Placement(0, 0, *image_size, resized, first, crop, cubic=self.interpolation == "bicubic")

    def config(self) -> dict[str, object]:
        """A JSON-ready description; ``CoefficientTransform.from_config`` reads it back."""
        config: dict[str, object] = {"type": "CoefficientTransform", "shorter_side": self.shorter_side}
        for name in ("resize", "crop", "interpolation", "chroma", "upright"):
            value = getattr(self, name)
            if value != type(self).__dataclass_fields__[name].default:
                config[name] = list(value) if isinstance(value, tuple) else value
        return config

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> CoefficientTransform:
        """The transform that :meth:`config` described.

        Raises:
            ValueError: an unknown key or a value of the wrong form.
        """
        settings = {key: value for key, value in config.items() if key != "type"}
        unknown = set(settings) - set(cls.__dataclass_fields__)
        if unknown:
            raise ValueError(
                f"CoefficientTransform has no setting {sorted(unknown)}; it has {', '.join(cls.__dataclass_fields__)}"
            )
        return cls(**settings)


@dataclass(frozen=True)
class RandomResizedCrop:
    """A random box of a photograph at one size, and perhaps mirrored: torchvision's training augmentation.

    Box, antialiased resizing and mirroring are part of the same maps as in :class:`CoefficientTransform`, so that they
    cost nothing more, and equal the same steps on pixels of the linear decode. Every picture gets a box of its own,
    drawn from PyTorch's generator.

    Attributes:
        size: ``(h, w)`` of the result, or one number for both.
        scale: least and greatest area of the box, as a share of the picture.
        ratio: least and greatest width over height of the box.
        flip: the probability that the picture is mirrored left and right.
        interpolation, chroma, upright: as in :class:`CoefficientTransform`.

    Raises:
        ValueError: a ``size`` that is not a positive integer or two, a ``scale`` or ``ratio`` that is not two positive
            numbers in ascending order, a ``flip`` outside ``[0, 1]``, or as :class:`CoefficientTransform`.
    """

    resizes: ClassVar[bool] = True
    size: int | tuple[int, int]
    scale: tuple[float, float] = (0.08, 1.0)
    ratio: tuple[float, float] = (3 / 4, 4 / 3)
    flip: float = 0.5
    interpolation: str = "bilinear"
    chroma: str = "fancy"
    upright: bool = True

    def __post_init__(self) -> None:
        object.__setattr__(self, "size", _size("size", self.size or 0, single=False))
        for name, (low, high) in (("scale", self.scale), ("ratio", self.ratio)):
            if not 0 < low <= high:
                raise ValueError(
                    f"RandomResizedCrop {name}={(low, high)}: give two positive numbers, the smaller first"
                )
        if not 0 <= self.flip <= 1:
            raise ValueError(f"RandomResizedCrop flip={self.flip!r} must be a probability, 0 to 1")
        _check_options("RandomResizedCrop", self.interpolation, self.chroma, self.upright)

    def __call__(self, coefficients: JPEGCoefficients) -> JPEGCoefficients:
        """A batch of files of one geometry; each gets a box of its own.

        Returns:
            color space ``"ycbcr"``, ``planes`` ``3 x (B, hb, wb, 8, 8)`` in float32, tables of ones, sampling 1x1.

        Raises:
            JPEGError: sampling factors that don't divide each other.
        """
        places = [self.place(coefficients.image_size) for _ in range(len(coefficients.qtables))]
        return _resized(coefficients, places, self.chroma)

    def place(self, image_size: tuple[int, int]) -> Placement:
        """A random part of an upright picture ``(H, W)``."""
        from cdzoo.jpeg.resize import Placement

        assert isinstance(self.size, tuple)
        mirrored = bool(torch.rand(()) < self.flip)
        cubic = self.interpolation == "bicubic"
        return Placement(*self._box(image_size), self.size, (0, 0), self.size, mirrored, cubic)

    def _box(self, image_size: tuple[int, int]) -> tuple[int, int, int, int]:
        """Top, left, height and width, drawn as torchvision's ``RandomResizedCrop`` does."""
        height, width = image_size
        low, high = (math.log(ratio) for ratio in self.ratio)
        for _ in range(10):
            area = height * width * float(torch.empty(()).uniform_(*self.scale))
            aspect = math.exp(float(torch.empty(()).uniform_(low, high)))
            w, h = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
            if 0 < w <= width and 0 < h <= height:
                top, left = (int(torch.randint(0, n + 1, ())) for n in (height - h, width - w))
                return top, left, h, w
        w, h = width, height  # the central box whose ratio is allowed
        if width / height < self.ratio[0]:
            h = min(height, round(width / self.ratio[0]))
        elif width / height > self.ratio[1]:
            w = min(width, round(height * self.ratio[1]))
        return (height - h) // 2, (width - w) // 2, max(h, 1), max(w, 1)


InputTransform: TypeAlias = LatentTransform | CoefficientTransform


def transform_from_config(config: Mapping[str, Any]) -> InputTransform:
    """The transform that ``config()`` of either kind described; without a ``"type"`` it is one of latents.

    Raises:
        ValueError: an unknown type or setting, or a value of the wrong form.
    """
    kind = config.get("type", "LatentTransform")
    if kind == "CoefficientTransform":
        return CoefficientTransform.from_config(config)
    if kind != "LatentTransform":
        raise ValueError(f"unknown type {kind!r}; known are LatentTransform and CoefficientTransform")
    return LatentTransform.from_config({key: value for key, value in config.items() if key != "type"})


def _nearest(x: Tensor, size: tuple[int, int]) -> Tensor:
    return x if tuple(x.shape[-2:]) == size else F.interpolate(x, size=size, mode="nearest")


def _resized(coefficients: JPEGCoefficients, places: list[Placement], chroma: str) -> JPEGCoefficients:
    from cdzoo.jpeg.resize import resize_coefficients

    return resize_coefficients(coefficients, places, chroma=chroma, num_threads=torch.get_num_threads())


def _crop_start(length: int, crop: int) -> int:
    """The sample of a picture where torchvision's ``CenterCrop`` begins; negative where it pads."""
    return -((crop - length) // 2) if crop > length else round((length - crop) / 2)


def _size(name: str, value: object, *, single: bool) -> Any:
    """A size as a tuple; one number stays one if it may be ``single``."""
    if value is None:
        return None
    numbers = list(value) if isinstance(value, list | tuple) else [value]
    sides = [integer(number) for number in numbers]
    if len(sides) not in (1, 2) or any(side is None or side < 1 for side in sides):
        raise ValueError(f"{name}={value!r}: give a positive integer or two, (height, width)")
    if len(sides) == 1:
        return sides[0] if single else (sides[0], sides[0])
    return tuple(sides)


def _check_options(name: str, interpolation: str, chroma: str, upright: bool) -> None:
    check_choice(f"{name} interpolation", interpolation, ("bilinear", "bicubic"))
    check_choice(f"{name} chroma", chroma, CHROMA)
    check_flag(f"{name} upright", upright)
