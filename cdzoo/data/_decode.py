"""Decode many files at a time, and treat those that cannot be read."""

from __future__ import annotations

import logging
from abc import ABC, abstractmethod
from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence
from typing import Any, ClassVar, Generic, Literal, TypeVar

from cdzoo._threads import for_each
from cdzoo.errors import CdzooError

__all__ = ["MAX_STREAM_BYTES", "Decoder", "ErrorPolicy", "OnError", "bucketed", "in_threads"]

T = TypeVar("T")
In = TypeVar("In")
Out = TypeVar("Out")
OnError = Literal["raise", "skip"] | Callable[[Exception], None]
MAX_STREAM_BYTES = 256 << 20
"""Largest file or shard member that is loaded; an image at the pixel limit has this size at 12 bits per pixel."""
_log = logging.getLogger("cdzoo.data")


class ErrorPolicy:
    """Treatment of a sample that cannot be read: raise; or log, or call a function, and leave the sample out."""

    def __init__(self, on_error: OnError) -> None:
        if on_error not in ("raise", "skip") and not callable(on_error):
            raise ValueError(f"on_error must be 'raise', 'skip' or a function of the error, not {on_error!r}")
        self._on_error = on_error

    def __call__(self, error: Exception) -> None:
        """Treat an error; returns only if the sample is to be left out."""
        if self._on_error == "raise":
            raise error
        if self._on_error == "skip":
            _log.warning("left out: %s", error)
        else:
            assert callable(self._on_error)
            self._on_error(error)


class Decoder(ABC, Generic[T]):
    """The reader of one kind of file, as datasets use it; ``T`` is the type of a decoded file.

    Attributes:
        suffixes: file name suffixes, in lower case, with the dot.
        error: type of the error for damaged files.
        head_sizes: numbers of bytes to read for a file's bucket key: the next one where one is too few.
        collate: the collate function.
        num_threads: files to read at the same time.
    """

    suffixes: ClassVar[tuple[str, ...]]
    error: ClassVar[type[CdzooError]]
    head_sizes: ClassVar[tuple[int, ...]]
    collate: ClassVar[Callable[..., Any]]

    def __init__(self, transform: Callable[[T], T] | None) -> None:
        self._transform = transform

    @property
    def num_threads(self) -> int:
        return 1

    @abstractmethod
    def bucket_key(self, head: bytes) -> Hashable:
        """The value that all files of a batch share, from the first bytes of a file; raises :class:`CdzooError`."""

    @abstractmethod
    def decode(self, files: Sequence[bytes], names: Sequence[str] | None = None) -> list[T | CdzooError]:
        """Each file's sample (a batch of one) or error; ``names`` are for warnings."""

    def peek(self, name: str, read: Callable[[int], bytes]) -> Hashable:
        """The bucket key of the file ``name``, or its error, returned; ``read`` takes a number of bytes."""
        for size in self.head_sizes:
            try:
                head = read(size)
            except (CdzooError, OSError) as error:
                return error
            try:
                return self.bucket_key(head)
            except CdzooError as error:
                found = error
                if len(head) < size:
                    break
        return _named(found, name)

    def batch_key(self, file: bytes) -> Hashable:
        """The value that decoded files of one batch share: :meth:`bucket_key`; ``None`` for a damaged file.

        Decoding the file raises its error, with the name.
        """
        try:
            return self.bucket_key(file)
        except CdzooError:
            return None

    def __call__(self, names: Sequence[str], files: Sequence[bytes | Exception]) -> list[T | Exception]:
        """Each file's sample, transformed, or its error, whose message begins with the name.

        Errors in place of files are returned as they are.
        """
        good = [(name, file) for name, file in zip(names, files, strict=True) if not isinstance(file, Exception)]
        decoded = iter(self.decode([file for _, file in good], [name for name, _ in good]))
        results: list[T | Exception] = []
        for name, file in zip(names, files, strict=True):
            if isinstance(file, Exception):
                results.append(file)
                continue
            sample = next(decoded)
            if isinstance(sample, CdzooError):
                results.append(_named(sample, name))
            else:
                results.append(self._transformed(sample, name))
        return results

    def _transformed(self, sample: T, name: str) -> T:
        if self._transform is None:
            return sample
        try:
            return self._transform(sample)
        except Exception as error:
            error.add_note(f"in the transform of {name}")
            raise


def in_threads(work: Callable[[In], Out], items: Sequence[In], num_threads: int) -> list[Out]:
    """``[work(item) for item in items]``, several at a time."""
    return for_each(lambda i: work(items[i]), len(items), num_threads)


def bucketed(
    items: Iterable[In],
    key: Callable[[In], Hashable],
    *,
    size: int | Callable[[In], int],
    max_pending: int,
    weight: Callable[[In], int] = lambda item: 1,
    drop_last: bool = False,
) -> Iterator[list[In]]:
    """Group items by key into lists: full lists, or the heaviest list when too much waits.

    Args:
        items: items in any order of keys; the order within a key is kept.
        key: the value that all items of a list share.
        size: length of a full list, or a function of an item that gives one value for each key.
        max_pending: largest total weight of the items that wait.
        weight: weight of an item; by default 1.
        drop_last: leave out lists that are not full.
    """
    buckets: dict[Hashable, list[In]] = {}
    weights: dict[Hashable, int] = {}
    pending = 0

    def full(bucket: list[In]) -> bool:
        return len(bucket) >= (size(bucket[0]) if callable(size) else size)

    def take(own: Hashable) -> Iterator[list[In]]:
        nonlocal pending
        taken = buckets.pop(own)
        pending -= weights.pop(own)
        if full(taken) or not drop_last:
            yield taken

    for item in items:
        own = key(item)
        buckets.setdefault(own, []).append(item)
        own_weight = weight(item)
        weights[own] = weights.get(own, 0) + own_weight
        pending += own_weight
        if full(buckets[own]):
            yield from take(own)
        while pending > max_pending:
            yield from take(max(weights, key=lambda key: weights[key]))
    if not drop_last:
        yield from buckets.values()


def _named(error: Any, name: str) -> CdzooError:
    """The same error about a file, with the name of the file in its message."""
    named: CdzooError = error.named(name)
    named.__cause__ = error
    return named
