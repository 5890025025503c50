"""The exceptions of cdzoo: one family, so that a program can catch all of them or just one kind.

Every message names the value that was refused, the rule that it breaks and what to do about it.
"""

from __future__ import annotations

from typing import Self

__all__ = ["BitstreamError", "CdzooError", "JPEGError", "PairingError", "WeightsError"]


class CdzooError(Exception):
    """Base of every error that cdzoo raises on its own account."""


class _StreamError(CdzooError):
    """Base of errors about one stream, possibly one among several.

    Attributes:
        reason: the message without the stream's place.
        position: index of the stream among those of the call, from 0; ``None`` where the call had one file.
        total: number of streams in the call, or ``None``.
    """

    def __init__(self, reason: str = "", *, position: int | None = None, total: int | None = None) -> None:
        super().__init__(reason if position is None else f"stream {position} of {total}: {reason}")
        self.reason, self.position, self.total = reason, position, total

    def at(self, position: int, total: int) -> Self:
        """The same error for another place."""
        return type(self)(self.reason, position=position, total=total)

    def named(self, name: str | None) -> Self:
        """The same error with a file's name, or nothing, in place of a position."""
        return type(self)(self.reason if name is None else f"{name}: {self.reason}")


class BitstreamError(_StreamError, ValueError):
    """A ``.cdz`` stream is empty, truncated, damaged, of an unknown version, or larger than the limits allow.

    Args:
        reason: the value that was refused, the rule and the way out.
        position: index of the stream among those of the call, from 0.
        total: number of streams in the call.
    """


class JPEGError(CdzooError, ValueError):
    """A JPEG file is damaged, inconsistent, or of a kind that is not supported.

    Args:
        reason: the value, the rule that it breaks, and the way out.
        name: the file: a path, or its place in a batch.
        byte: the position in the file.
        unsupported: true where the file may be sound, but is of a kind that cdzoo does not read.
    """

    def __init__(
        self, reason: str, *, name: str | None = None, byte: int | None = None, unsupported: bool = False
    ) -> None:
        super().__init__(reason)
        self.reason = reason
        self.name = name
        self.byte = byte
        self.unsupported = unsupported

    def __str__(self) -> str:
        place = [self.name] if self.name is not None else []
        place += [f"byte {self.byte}"] if self.byte is not None else []
        return f"{', '.join(place)}: {self.reason}" if place else self.reason

    def named(self, name: str | None) -> JPEGError:
        """The same error about the file of this name, or without a name."""
        return JPEGError(self.reason, name=name, byte=self.byte, unsupported=self.unsupported)


class WeightsError(CdzooError):
    """Weights could not be found, verified, or loaded in full."""


class PairingError(_StreamError):
    """Two things belong to different codecs: a stream and a codec, or a codec and a network.

    Args:
        reason: the value that was refused, the rule and the way out.
        position: index of the stream among those of the call, from 0.
        total: number of streams in the call.
    """
