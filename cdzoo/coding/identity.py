"""A codec's identity: what its fingerprint covers, and when it is computed again.

The fingerprint is a SHA-256 over

1. the codec's name and ``configuration()``;
2. every tensor of the state dict in float32, except those of ``synthesis_parts`` (no latent and no bit depends on
   them), those of ``state_parts`` (the coding state is derived from them), counters of batch norm, and buffers that a
   module lists in its ``constant_buffers``;
3. the coding state: probability tables, and the integers of a hyper-decoder.

Device, memory layout and a cast to another dtype change none of these. The coding state and the fingerprint are
computed again when the value of a tensor outside ``synthesis_parts`` has changed. Every call that codes checks this,
so that changes through ``.data`` are seen as well.
"""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping
from functools import lru_cache
from typing import TYPE_CHECKING, Any, Generic, Protocol

import torch
from torch import Tensor, nn

if TYPE_CHECKING:
    from typing_extensions import TypeVar
else:
    from typing import TypeVar

__all__ = ["CodingState", "Identity", "State", "coding_tensors", "position_sum"]

_COUNTERS = ("num_batches_tracked",)
"""Buffers on which no latent depends."""


class CodingState(ABC):
    """Integers that give a codec's bits their meaning: probability tables, and the fixed-point hyper-decoder.

    A codec derives its state from its parameters and keeps it until a parameter changes. Saved weights contain the
    state, so that another machine does not derive its own. Subclasses define what they hold.
    """

    @abstractmethod
    def tensors(self) -> dict[str, Tensor]:
        """Everything as named tensors: integers, or float32 where a value is used as it is."""


if TYPE_CHECKING:
    State = TypeVar("State", bound=CodingState, default=Any)  # so that plain ``Codec`` means ``Codec[Any]``
else:
    State = TypeVar("State", bound=CodingState)


class _Codec(Protocol):
    """The part of a codec that this module reads."""

    name: str
    synthesis_parts: tuple[str, ...]
    state_parts: tuple[str, ...]

    def configuration(self) -> Mapping[str, Any]: ...


class Identity(Generic[State]):
    """The coding state of a codec's present parameters, and the fingerprint of both.

    Args:
        codec: the codec.
        state: its coding state.

    Attributes:
        state: the coding state.
        fingerprint: 16 hexadecimal digits.
    """

    def __init__(self, codec: Any, state: State) -> None:
        tensors = coding_tensors(codec)
        self.state = state
        self.fingerprint = _fingerprint(codec, tensors, state)
        self._stamp = _stamp(tensors)
        self._contents = {_content(tensors)}

    def holds_for(self, codec: nn.Module) -> bool:
        """Check that the codec's parameters are still the ones that this identity was computed for."""
        tensors = coding_tensors(codec)
        stamp = _stamp(tensors)
        if stamp == self._stamp:
            return True
        # The stamp also changes when values do not (a copy to another device, a cast): compare the values.
        if _content(tensors) not in self._contents:
            return False
        self._stamp = stamp
        return True

    def add_form(self, codec: nn.Module) -> None:
        """Accept the codec's present values, rounded by a cast, as another form of the same parameters."""
        self._contents.add(_content(coding_tensors(codec)))


def coding_tensors(codec: Any) -> list[tuple[str, Tensor]]:
    """Named tensors on which latents or bits depend: parameters first, then buffers, in the order of registration."""
    parameters: list[tuple[str, Tensor]] = []
    buffers: list[tuple[str, Tensor]] = []
    skipped: tuple[str, ...] = codec.synthesis_parts
    modules: list[tuple[str, nn.Module]] = [("", codec)]
    while modules:
        prefix, module = modules.pop()
        for name, parameter in module._parameters.items():
            if parameter is not None and name not in skipped:
                parameters.append((prefix + name, parameter))
        constants = getattr(type(module), "constant_buffers", _COUNTERS)
        for name, buffer in module._buffers.items():
            ignored = name in skipped or name in constants or name in module._non_persistent_buffers_set
            if buffer is not None and not ignored:
                buffers.append((prefix + name, buffer))
        children = [(f"{prefix}{n}.", m) for n, m in module._modules.items() if m is not None and n not in skipped]
        modules += reversed(children)
        skipped = ()  # these are names within the codec itself, not within its modules
    return parameters + buffers


def _fingerprint(codec: _Codec, tensors: Iterable[tuple[str, Tensor]], state: CodingState) -> str:
    digest = hashlib.sha256(repr(sorted({"name": codec.name, **codec.configuration()}.items())).encode())
    analysis = [(name, t) for name, t in tensors if name.partition(".")[0] not in codec.state_parts]
    for name, tensor in [*analysis, *sorted(state.tensors().items())]:
        digest.update(name.encode() + repr(tuple(tensor.shape)).encode())
        digest.update(_bytes(tensor))
    return digest.hexdigest()[:16]


def _content(tensors: Iterable[tuple[str, Tensor]]) -> str:
    digest = hashlib.sha256()
    for _, tensor in tensors:
        digest.update(_bytes(tensor))
    return digest.hexdigest()


def _bytes(tensor: Tensor) -> bytes:
    tensor = tensor.detach().float() if tensor.is_floating_point() else tensor.detach()
    return tensor.cpu().contiguous().numpy().tobytes()


def _stamp(tensors: Iterable[tuple[str, Tensor]]) -> tuple[object, ...]:
    """A tuple that changes when a tensor changes, at a small part of the cost of hashing the values.

    Versions show ordinary changes, and addresses show replaced tensors. Writing through ``.data`` changes the values
    only, so a sum over each tensor's bit patterns is included.
    """
    stamp: list[object] = []
    sums: list[Tensor] = []
    for _, t in tensors:
        stamp += (t.data_ptr(), -1 if t.is_inference() else t._version, t.dtype, t.shape)
        sums.append(position_sum(t))
    return (*stamp, *torch.stack([s.to(sums[0].device) for s in sums]).tolist()) if sums else ()


def position_sum(tensor: Tensor) -> Tensor:
    """A number that changes with the values and with their order, for little more than the cost of a sum.

    Returns:
        int64, 0-dimensional, on the tensor's device: the tensor's words, each multiplied by an odd number that depends
        on its position, summed.
    """
    words = _words(tensor)
    count = words.numel()
    odd = _odd_numbers(1 << count.bit_length(), words.device)  # few sizes, shared by many tensors
    return (words * odd[:count]).sum()


@lru_cache(maxsize=64)
def _odd_numbers(count: int, device: torch.device) -> Tensor:
    """``1, 3, 5, ...``: a multiplication by an even number would lose the highest bit."""
    with torch.inference_mode(False):
        return 2 * torch.arange(count, device=device) + 1


def _words(tensor: Tensor) -> Tensor:
    """The tensor's memory, ``(n,)``: as int64, which is summed fastest, or as integers of the width of its elements."""
    strides: tuple[int, ...] = tensor.stride()
    by_stride = sorted(range(tensor.dim()), key=lambda axis: -strides[axis])
    flat = tensor.detach().permute(by_stride).reshape(-1)  # no copy, whatever the memory format
    size = flat.element_size()
    if flat.nbytes % 8 == 0 and flat.storage_offset() * size % 8 == 0:
        return flat.view(torch.int64)
    return flat.view({1: torch.int8, 2: torch.int16, 4: torch.int32}[size])
