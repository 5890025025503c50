"""Pixel-domain CNNs as networks over JPEG coefficients (Ehrlich and Davis, sec. 4.6).

There are three forms of the same function:

- ``"fused"``, the form to use: one inverse DCT, combined with dequantization, color conversion and normalization. If
  the network starts with a plain convolution, it is combined with that as well (:mod:`cdzoo.jpeg.nn.stem`). In the
  paper's networks, adjacent pairs of DCT and inverse DCT between layers cancel; this form remains.
- ``"factored"``: every layer reads and gives coefficients. Where the paper has no other form of a layer, it runs as
  inverse DCT, operation, DCT.
- ``"explicit"``, the paper's form: convolutions are dense maps, and ReLU masks are applied by the harmonic mixing
  tensor.

The paper presents the explicit form as the faster network. But on the paper's own architecture for 32x32 pixels it
needs 77 times the multiply-adds of the pixel network and 100 to 500 times its time, and at the size of ImageNet it does
not fit into memory. Coefficients save the *decoder's* work on the CPU after entropy decoding. ``"fused"`` saves that
too.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from itertools import zip_longest
from typing import Any

import torch
from torch import Tensor, nn

from cdzoo._torch import reference_tensor
from cdzoo.jpeg.nn.cnn_names import describe_structure, find_source
from cdzoo.jpeg.nn.conv import DEFAULT_MEMORY_BUDGET
from cdzoo.jpeg.nn.entrance import JPEGEntrance, make_convolutions_explicit
from cdzoo.jpeg.nn.preprocessing import fixed_input_size, read_preprocessing
from cdzoo.transforms import CoefficientTransform
from cdzoo.types import JPEGCoefficients, Origin

__all__ = ["BUILDER", "JPEGDomainModel", "to_jpeg_domain"]

BUILDER = "jpeg_domain"
"""Name of the builder that makes converted networks again, see :mod:`cdzoo.models.converted`."""


def to_jpeg_domain(
    model: nn.Module,
    *,
    transforms: Any = None,
    mode: str = "fused",
    relu: str = "exact",
    num_frequencies: int = 15,
    chroma: str = "fancy",
    mean: float | Sequence[float] | None = None,
    std: float | Sequence[float] | None = None,
    memory_budget: int = DEFAULT_MEMORY_BUDGET,
) -> JPEGDomainModel:
    """A copy of a CNN that reads :class:`cdzoo.JPEGCoefficients` instead of pixels.

    With ``relu="exact"``, its outputs are those of ``model((decode_jpeg(c, clamp=False, chroma=chroma) - mean) / std)``
    up to rounding, for any image size and sampling, gray files included (three equal channels). Batch norm,
    training mode, parameter names and dtype are the model's own. The preprocessing of a pretrained network comes along
    as ``transforms``::

        model = to_jpeg_domain(timm.create_model("tf_efficientnet_lite0", pretrained=True))
        logits = model(read_jpeg(paths, transform=model.transforms))

    :func:`cdzoo.save_pretrained` saves a network whose architecture timm or torchvision can build by name, with its
    preprocessing, and :func:`cdzoo.from_pretrained` loads it without a download.

    Args:
        model: a CNN over ``(B, 3, H, W)``, or ``(B, 1, H, W)`` (it is given luma), as torchvision and timm build them.
        transforms: the preprocessing: what torchvision's ``weights.transforms()`` returns, the dictionary of timm's
            ``resolve_data_config``, or a :class:`cdzoo.transforms.CoefficientTransform`. Resize, crop, interpolation,
            mean and std are taken from it. ``None`` takes them from timm's ``pretrained_cfg`` if the model has one.
        mode: ``"fused"``, ``"factored"`` or ``"explicit"``, see the module. Operations without a JPEG form run as
            DCT.op.IDCT in ``"factored"`` and raise when they are reached in ``"explicit"``.
        relu: ``"exact"``, or ``"asm"`` or ``"apx"`` (sec. 4.2), for ReLU only; not in ``"fused"``, which has pixels.
        num_frequencies: 1 to 15, of ASM and APX.
        chroma: upsampling of chroma, ``"fancy"`` (libjpeg's default) or ``"nearest"``.
        mean: subtracted from pixels in [0, 1], one number or one per channel; needed where ``transforms`` and the
            model have none.
        std: pixels are divided by it, likewise.
        memory_budget: bytes that all explicit maps may take together, for one image size.

    Returns:
        a module ``(JPEGCoefficients) -> output of the model``.

    Raises:
        ValueError: an unknown option, an approximated ReLU with ``"fused"``, a network over neither 3 nor 1
            channels, a mean or std that is neither given nor found, or preprocessing without an equivalent.
        TypeError: ``transforms`` of another kind.
        MemoryError: at the first call with an image size whose explicit maps exceed the budget.
    """
    found = read_preprocessing(model, transforms, mean, std, chroma)
    entrance = JPEGEntrance(
        channels=_input_channels(model),
        mode=mode,
        relu=relu,
        num_frequencies=num_frequencies,
        chroma=chroma,
        mean=found.mean,
        std=found.std,
        memory_budget=memory_budget,
    )
    return JPEGDomainModel(entrance, copy.deepcopy(model), transforms=found.transforms)


class JPEGDomainModel(nn.Module):
    """A CNN behind the entrance that its form needs; made by :func:`to_jpeg_domain`.

    Args:
        entrance: the form; it is moved to the network's device and dtype.
        model: the network, which is taken over and changed.
        transforms: the preprocessing of files; ``None`` if it is not known.

    Attributes:
        model: the network. Its parameters keep their names.
        transforms: the transform for ``read_jpeg`` and the datasets, or ``None``.
        input_size: ``(H, W)`` of the only images that the network takes; ``None`` for networks that take any.
        folded: name of the convolution that runs in the entrance (``"fused"`` only), or ``None``.
        origin: how to build it again: library, architecture and form; ``None`` for networks that neither timm nor
            torchvision builds by name.
    """

    def __init__(
        self, entrance: JPEGEntrance, model: nn.Module, *, transforms: CoefficientTransform | None = None
    ) -> None:
        super().__init__()
        self.transforms = transforms
        self.input_size = fixed_input_size(model)
        self.folded = _foldable_convolution(model) if entrance.mode == "fused" else None
        if self.folded is not None:
            conv = model.get_submodule(self.folded)
            assert isinstance(conv, nn.Conv2d)
            model.set_submodule(self.folded, _FoldedConv2d(conv))
        if entrance.mode == "explicit":
            make_convolutions_explicit(model)
        self.model = model
        reference = _reference(model)
        self.entrance = entrance.to(device=reference.device, dtype=reference.dtype)
        self.training = model.training
        self._origin: Origin | None = None

    @property
    def origin(self) -> Origin | None:
        """The origin of the module, see :class:`cdzoo.types.Origin`; ``None`` for networks of one's own."""
        if self._origin is None and (source := find_source(self.model)) is not None:
            self._origin = Origin(BUILDER, {**source._asdict(), **self.entrance.options})
        return self._origin

    @origin.setter
    def origin(self, origin: Origin) -> None:
        self._origin = origin

    def check_rebuilt(self, other: nn.Module) -> None:
        """Refuse to be saved if a network of the same origin would not compute the same function.

        Raises:
            ValueError: it differs.
        """
        assert isinstance(other, JPEGDomainModel)
        pairs = zip_longest(describe_structure(self.model), describe_structure(other.model), fillvalue="nothing")
        for ours, theirs in pairs:
            if ours != theirs:
                raise ValueError(
                    f"the network has {ours.strip()!r} where the one that would be built again has {theirs.strip()!r}; "
                    "build it without arguments other than the number of classes, or register its class with "
                    "cdzoo.register_model"
                )

    def forward(self, coefficients: JPEGCoefficients) -> Any:
        """``coefficients`` of a batch of files to the output of the network, logits ``(B, classes)`` for classifiers.

        Raises:
            JPEGError: color spaces and samplings without a linear decode.
            ValueError: ``"explicit"`` and an operation that has no JPEG form; images of another size than the network
                takes.
            MemoryError: ``"explicit"`` and maps above the memory budget.
        """
        if self.input_size is not None and coefficients.image_size != self.input_size:
            (height, width), (rows, columns) = coefficients.image_size, self.input_size
            raise ValueError(
                f"images of {height}x{width} px: this network takes {rows}x{columns} px only; read files with "
                "read_jpeg(paths, transform=model.transforms), or give to_jpeg_domain transforms="
                f"CoefficientTransform(resize=..., crop=({rows}, {columns}))"
            )
        self.entrance.check_memory(self, coefficients)
        conv = None if self.folded is None else self.model.get_submodule(self.folded)
        assert conv is None or isinstance(conv, _FoldedConv2d)
        return self.model(self.entrance(coefficients, conv, dtype=_reference(self.model).dtype))

    def extra_repr(self) -> str:
        """The arguments, for ``print``."""
        return f"folded={self.folded!r}"


class _FoldedConv2d(nn.Conv2d):
    """Holds a convolution's parameters under their old names and passes through what the entrance has computed."""

    def __init__(self, conv: nn.Conv2d) -> None:
        nn.Module.__init__(self)
        self.__dict__.update(conv.__dict__)

    def forward(self, x: Tensor) -> Tensor:
        return x

    def extra_repr(self) -> str:
        """The arguments, for ``print``."""
        return f"{super().extra_repr()}, folded"  # type: ignore[no-untyped-call]


def _foldable_convolution(model: nn.Module) -> str | None:
    """Name of the plain convolution that alone reads the input, in training as in evaluation, if tracing finds one."""
    name = _only_reader(model, training=True)
    return name if name is not None and name == _only_reader(model, training=False) else None


def _only_reader(model: nn.Module, *, training: bool) -> str | None:
    try:
        # A copy, in which a module may keep what tracing gives it in place of tensors.
        graph = torch.fx.symbolic_trace(copy.deepcopy(model).train(training)).graph
    except Exception:  # whatever a model does that can't be traced, it still runs, on the normalized image
        return None
    image = next(node for node in graph.nodes if node.op == "placeholder")
    calls = [node.target for node in graph.nodes if node.op == "call_module"]
    readers = list(image.users)
    if len(readers) != 1 or readers[0].op != "call_module" or calls.count(readers[0].target) != 1:
        return None
    conv = model.get_submodule(readers[0].target)
    plain = type(conv) is nn.Conv2d and conv.padding_mode == "zeros" and conv.groups == 1
    return str(readers[0].target) if plain and not conv._forward_hooks and not conv._forward_pre_hooks else None


def _input_channels(model: nn.Module) -> int:
    """3 or 1: what the convolution that reads the image takes.

    Where tracing finds none it is the first one, if that can be; behind a space-to-depth stem there are more channels.
    """
    name = _foldable_convolution(model)
    candidates = model.modules() if name is None else [model.get_submodule(name)]
    reader = next((module for module in candidates if isinstance(module, nn.Conv2d)), None)
    channels = 3 if reader is None or (name is None and reader.in_channels != 1) else reader.in_channels
    if channels not in (1, 3):
        raise ValueError(
            f"the network reads images of {channels} channels, but JPEG files decode to 3 (RGB), or 1 (luma); replace "
            "its first convolution"
        )
    return channels


def _reference(model: nn.Module) -> Tensor:
    """A tensor with the dtype and device of the network."""
    parameter = reference_tensor(model)
    return torch.empty(0) if parameter is None else parameter
