"""A feature map that is held as DCT coefficients and runs PyTorch's layers in their JPEG-domain form.

For a network, ``CoefficientMap`` is a tensor ``(B, C, H, W)``, so that networks need no change. :class:`LayerForms`
applies their functions (``conv2d``, ``batch_norm``, ``relu``, ``+``, pooling) to the coefficients.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import resolve_name
from torch.utils import _pytree as pytree

from cdzoo.jpeg import dct
from cdzoo.jpeg.nn.conv import Pair, conv_output_size, flat_image, jpeg_conv2d
from cdzoo.jpeg.nn.layers import jpeg_batch_norm, jpeg_global_avg_pool
from cdzoo.jpeg.nn.relu import apx_relu, asm_relu, check_num_frequencies, frequency_mask, harmonic_mixing_tensor

__all__ = ["CoefficientMap", "LayerForms"]

# Questions about shape, type and place, which the tensor answers by itself.
_METADATA = {
    "__get__", "dim", "size", "numel", "nelement", "element_size", "get_device", "is_floating_point", "is_complex",
    "is_contiguous", "stride", "__len__", "is_same_size",
}  # fmt: skip

_PIECES = ("chunk", "split", "tensor_split")
_OTHER_VIEWS = (
    "detach", "expand", "flatten", "movedim", "narrow", "permute", "reshape", "select", "squeeze", "swapaxes",
    "transpose", "unbind", "unflatten", "unsqueeze", "view", "view_as",
)  # fmt: skip
"""Methods whose result shares memory with their input, besides slices."""
_FORMS = (
    "conv2d", "batch_norm", "relu", "max_pool2d", "adaptive_avg_pool2d", "mean", "add", "sub", "mul", "div", "cat",
    "dropout", "grad", "contiguous",
)  # fmt: skip
"""Methods of :class:`LayerForms`, by the name that PyTorch's functions, methods and operators have in common."""


class CoefficientMap(Tensor):
    """A map ``(B, C, H, W)`` whose values are the coefficients ``(B, C, Hb, Wb, 8, 8)`` of its blocks.

    Gradients flow through ``coefficients``, which has the ``grad_fn`` and takes hooks and ``retain_grad()``.
    ``map.requires_grad`` is always ``False``, but ``torch.autograd.grad(loss, map)`` gives its gradient, as a map.

    Attributes:
        coefficients: orthonormal, zero beyond the image.
        image_size: ``(H, W)``.
        forms: how operations on it are carried out.
        source: for a slice, the map that it was taken from and the index; what changes it in place changes that.
        is_view: whether it shares the memory of another tensor in PyTorch, but not here.
    """

    coefficients: Tensor
    image_size: tuple[int, int]
    forms: LayerForms
    source: tuple[CoefficientMap, Any] | None = None
    is_view: bool = False

    @staticmethod
    def __new__(
        cls: type[CoefficientMap], coefficients: Tensor, image_size: tuple[int, int], forms: LayerForms
    ) -> CoefficientMap:
        shape = (*coefficients.shape[:2], *image_size)
        # The outer tensor has shape, dtype and device but no memory; gradients flow through the coefficients.
        made: CoefficientMap = torch.Tensor._make_wrapper_subclass(
            cls, shape, dtype=coefficients.dtype, device=coefficients.device
        )
        made.coefficients, made.image_size, made.forms = coefficients, image_size, forms
        return made

    def replaced(self, coefficients: Tensor, image_size: tuple[int, int] | None = None) -> CoefficientMap:
        """A map of other coefficients ``(B, C, Hb, Wb, 8, 8)``, of the same size unless given, with the same forms."""
        return CoefficientMap(coefficients, image_size or self.image_size, self.forms)

    def pixels(self) -> Tensor:
        """``(B, C, H, W)``, a plain tensor: the inverse DCT."""
        return dct.unblockify(dct.idct2d(self.coefficients), self.image_size).contiguous()

    def __repr__(self, *, tensor_contents: Any = None) -> str:  # type: ignore[override]
        return f"CoefficientMap(shape={tuple(self.shape)}, dtype={self.dtype}, device={self.device})"

    @classmethod
    def __torch_function__(
        cls,
        func: Callable[..., Any],
        types: Sequence[type],
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        kwargs = kwargs or {}
        if func.__name__ in _METADATA:
            with torch._C.DisableTorchFunctionSubclass():
                return func(*args, **kwargs)
        first = next(leaf for leaf in pytree.tree_leaves((args, kwargs)) if isinstance(leaf, CoefficientMap))
        name = func.__name__
        # y += 1 comes as add_, too
        in_place = (name.endswith("_") and not name.endswith("__")) or kwargs.get("inplace")
        changed = first if args and args[0] is first and (in_place or name == "__setitem__") else None
        if changed is not None and changed.is_view:
            raise ValueError(
                f"{resolve_name(func) or name} changes a view of a map in place, which would not change the map; "
                'change the map itself or a slice of it, compute out of place, or use mode="fused"'
            )
        if changed is not None and name == "__setitem__" and not first.forms.explicit:
            return changed.assign(args[1], args[2])
        out = first.forms.run(func, args, kwargs)
        if changed is not None and isinstance(out, CoefficientMap):
            changed.become(out.coefficients)
            return changed
        return out if changed is not None else _as_views(out, name, args, kwargs)

    def become(self, coefficients: Tensor) -> None:
        """Change in place to ``coefficients`` ``(B, C, Hb, Wb, 8, 8)``, also in the map that was sliced."""
        self.coefficients = coefficients
        if self.source is not None:
            whole, index = self.source
            whole.assign(index, self)

    def assign(self, index: Any, value: Any) -> None:
        """Set the pixels at ``index``, as ``self[index] = value``."""
        pixels = self.pixels()
        pixels[index] = value.pixels() if isinstance(value, CoefficientMap) else value
        self.become(dct.dct2d(dct.blockify(pixels)))

    @classmethod
    def __torch_dispatch__(  # type: ignore[override]
        cls, func: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        raise NotImplementedError(f"{func} reached a CoefficientMap below PyTorch's functions")


def _as_views(out: Any, name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """The result of a function, with a note in its maps of which maps they are views of."""
    whole = args[0] if args else None
    if not isinstance(whole, CoefficientMap):
        return out
    if name == "__getitem__" and isinstance(out, CoefficientMap):
        out.source = (whole, args[1])
    elif name in _PIECES:
        axis, start = kwargs.get("dim", args[2] if len(args) > 2 else 0) % 4, 0
        for piece in out:
            stop = start + piece.shape[axis]
            piece.source = (whole, (slice(None),) * axis + (slice(start, stop),))
            start = stop
    elif name in _OTHER_VIEWS:
        for view in pytree.tree_leaves(out):
            if isinstance(view, CoefficientMap):
                view.is_view = True
    return out


class LayerForms(nn.Module):
    """The forms of PyTorch's functions for a :class:`CoefficientMap`.

    Args:
        mode: ``"factored"``: operations without a JPEG form run on the inverse DCT, and the DCT follows.
            ``"explicit"``: they raise ``ValueError``; where a mask or a maximum needs pixel values, these come from a
            product with the basis tensor, and masks are applied with the harmonic mixing tensor (eq. 16-17).
        relu: ``"exact"``, ``"asm"`` or ``"apx"``, for ReLU; other activations are never approximated.
        num_frequencies: 1 to 15, for ``"asm"`` and ``"apx"``.
    """

    harmonic: Tensor
    basis: Tensor

    def __init__(self, *, mode: str, relu: str, num_frequencies: int) -> None:
        super().__init__()
        num_frequencies = check_num_frequencies(num_frequencies)
        self.explicit = mode == "explicit"
        self.relu_kind = relu
        self.num_frequencies = 15 if relu == "exact" else num_frequencies
        if self.explicit:
            self.register_buffer("harmonic", harmonic_mixing_tensor().reshape(64, 64, 64), persistent=False)
            self.register_buffer("basis", dct.basis_matrix(dtype=torch.float32), persistent=False)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> LayerForms:
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        if self.explicit:  # constants are rounded once, to the dtype in use
            place = {"dtype": self.basis.dtype, "device": self.basis.device}
            self.harmonic = harmonic_mixing_tensor(**place).reshape(64, 64, 64)  # type: ignore[arg-type]
            self.basis = dct.basis_matrix(**place)  # type: ignore[arg-type]
        return self

    def run(self, func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """``func`` of arguments that hold at least one map, in its JPEG form if it has one."""
        name = func.__name__.rstrip("_")
        out = getattr(self, name)(*args, **kwargs) if name in _FORMS else NotImplemented
        if out is not NotImplemented:
            return out
        if self.explicit:
            raise ValueError(
                f'{resolve_name(func) or func} has no JPEG-domain form, which mode="explicit" demands; use '
                'mode="factored", which runs it between an inverse DCT and a DCT, or "fused"'
            )
        args, kwargs = pytree.tree_map_only(CoefficientMap, CoefficientMap.pixels, (args, kwargs))
        return pytree.tree_map_only(Tensor, self._wrapped, func(*args, **kwargs))

    def _wrapped(self, x: Tensor) -> Tensor:
        if x.dim() != 4 or not x.is_floating_point():
            return x
        return CoefficientMap(dct.dct2d(dct.blockify(x)), (x.shape[2], x.shape[3]), self)

    def conv2d(
        self,
        c: CoefficientMap,
        weight: Tensor,
        bias: Tensor | None = None,
        stride: Pair = 1,
        padding: Pair | str = 0,
        dilation: Pair = 1,
        groups: int = 1,
    ) -> Any:
        options: dict[str, Any] = {"stride": stride, "padding": padding, "dilation": dilation}
        mode, size = "explicit" if self.explicit else "factored", c.image_size
        out = jpeg_conv2d(c.coefficients, weight, bias, groups=groups, image_size=size, mode=mode, **options)
        return c.replaced(out, conv_output_size(size, tuple(weight.shape[2:]), **options))

    def batch_norm(
        self,
        c: CoefficientMap,
        running_mean: Tensor | None,
        running_var: Tensor | None,
        weight: Tensor | None = None,
        bias: Tensor | None = None,
        training: bool = False,
        momentum: float = 0.1,
        eps: float = 1e-5,
    ) -> Any:
        options: dict[str, Any] = {"training": training, "momentum": momentum, "eps": eps, "image_size": c.image_size}
        return c.replaced(jpeg_batch_norm(c.coefficients, running_mean, running_var, weight, bias, **options))

    def relu(self, c: CoefficientMap, inplace: bool = False) -> Any:
        n, size = self.num_frequencies, c.image_size
        if not self.explicit:
            if self.relu_kind == "apx":
                return c.replaced(apx_relu(c.coefficients, n, image_size=size))
            return c.replaced(asm_relu(c.coefficients, n))
        values = c.coefficients * frequency_mask(n, device=c.device)
        low = values.flatten(-2) @ self.basis
        if self.relu_kind == "apx":
            low = low.relu() * dct.image_mask(c.coefficients, size).flatten(-2)
            return c.replaced(torch.unflatten(low @ self.basis.T, -1, (8, 8)))
        mask = (low.detach() > 0).to(low.dtype)
        masked = torch.einsum("...a,amb,...m->...b", c.coefficients.flatten(-2), self.harmonic, mask)
        return c.replaced(torch.unflatten(masked, -1, (8, 8)))

    def max_pool2d(
        self,
        c: CoefficientMap,
        kernel_size: Pair,
        stride: Pair | None = None,
        padding: Pair = 0,
        dilation: Pair = 1,
        ceil_mode: bool = False,
        return_indices: bool = False,
    ) -> Any:
        if return_indices or not self.explicit:
            return NotImplemented
        blocks = torch.unflatten(c.coefficients.flatten(-2) @ self.basis, -1, (8, 8))
        x = dct.unblockify(blocks, c.image_size)
        pooled = nn.functional.max_pool2d(x, kernel_size, stride, padding, dilation, ceil_mode)
        return self._wrapped(pooled)

    def adaptive_avg_pool2d(self, c: CoefficientMap, output_size: Any) -> Any:
        if output_size != 1 and tuple(pytree.tree_leaves(output_size)) != (1, 1):
            return NotImplemented
        return jpeg_global_avg_pool(c.coefficients, image_size=c.image_size)[..., None, None]

    def mean(self, c: CoefficientMap, dim: Any = None, keepdim: bool = False, *, dtype: Any = None) -> Any:
        if dtype is not None or not isinstance(dim, list | tuple) or sorted(d % 4 for d in dim) != [2, 3]:
            return NotImplemented
        pooled = jpeg_global_avg_pool(c.coefficients, image_size=c.image_size)
        return pooled[..., None, None] if keepdim else pooled

    def add(self, c: Any, other: Any, *, alpha: float = 1) -> Any:
        if not isinstance(c, CoefficientMap):
            c, other = (other, c) if alpha == 1 else (c, other)
        if not isinstance(c, CoefficientMap):
            return NotImplemented
        if isinstance(other, CoefficientMap):
            same = other.image_size == c.image_size
            return c.replaced(c.coefficients + alpha * other.coefficients) if same else NotImplemented
        if (constant := _constant_over_space(other)) is None:
            return NotImplemented
        return c.replaced(c.coefficients + alpha * constant * flat_image(c.coefficients, c.image_size))

    def sub(self, c: Any, other: Any, *, alpha: float = 1) -> Any:
        return self.add(c, other, alpha=-alpha)

    def mul(self, c: Any, other: Any) -> Any:
        if not isinstance(c, CoefficientMap):
            c, other = other, c
        constant = _constant_over_space(other)
        return NotImplemented if constant is None else c.replaced(c.coefficients * constant)

    def div(self, c: Any, other: Any, *, rounding_mode: str | None = None) -> Any:
        constant = _constant_over_space(other)
        if constant is None or rounding_mode is not None or not isinstance(c, CoefficientMap):
            return NotImplemented
        return c.replaced(c.coefficients / constant)

    def cat(self, tensors: Sequence[Any], dim: int = 0) -> Any:
        if dim not in (0, 1, -3, -4) or not all(isinstance(t, CoefficientMap) for t in tensors):
            return NotImplemented
        if len({t.image_size for t in tensors}) != 1:
            return NotImplemented
        return tensors[0].replaced(torch.cat([t.coefficients for t in tensors], dim % 4))

    def dropout(self, c: CoefficientMap, p: float = 0.5, training: bool = True, inplace: bool = False) -> Any:
        return NotImplemented if training and p > 0 else c

    def grad(self, outputs: Any, inputs: Any, *args: Any, **kwargs: Any) -> Any:
        """``torch.autograd.grad``: as the DCT is orthonormal, the coefficients' gradient is the DCT of the pixels'."""
        if any(isinstance(leaf, CoefficientMap) for leaf in pytree.tree_leaves((outputs, args, kwargs))):
            raise ValueError(
                "gradients of a map, or with a map as grad_outputs: pass its coefficients, or its pixels()"
            )
        if kwargs.get("is_grads_batched") or (len(args) > 5 and args[5]):
            raise ValueError("gradients in batches with respect to a map: pass the map's coefficients")
        plain = [x.coefficients if isinstance(x, CoefficientMap) else x for x in inputs]
        found = torch.autograd.grad(outputs, plain, *args, **kwargs)
        return tuple(
            x.replaced(_cropped(g, x.image_size)) if isinstance(x, CoefficientMap) and g is not None else g
            for x, g in zip(inputs, found, strict=True)
        )

    def contiguous(self, c: CoefficientMap, memory_format: Any = None) -> Any:
        return c


def _cropped(c: Tensor, size: tuple[int, int]) -> Tensor:
    """Coefficients with zeros beyond the image."""
    if size[0] % 8 == 0 and size[1] % 8 == 0:
        return c
    return dct.dct2d(dct.idct2d(c) * dct.image_mask(c, size))


def _constant_over_space(value: Any) -> Any:
    """A number, or a tensor ``(..., C, 1, 1)`` brought to the shape of coefficient maps; ``None`` for others."""
    if isinstance(value, int | float):
        return value
    if isinstance(value, CoefficientMap) or not isinstance(value, Tensor):
        return None
    if value.dim() == 0:
        return value
    return value[..., None, None] if value.dim() >= 2 and value.shape[-2:] == (1, 1) else None
