"""Threads that stay, for work that leaves the GIL to others."""

from __future__ import annotations

import functools
import itertools
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

__all__ = ["for_each", "pool"]

_T = TypeVar("_T")


def pool(workers: int) -> ThreadPoolExecutor:
    """A pool of this process: a parent's threads are dead in the forked workers of a ``DataLoader``."""
    return _pool(os.getpid(), workers)


@functools.lru_cache(maxsize=8)
def _pool(process: int, workers: int) -> ThreadPoolExecutor:
    return ThreadPoolExecutor(workers, thread_name_prefix="cdzoo")


def for_each(work: Callable[[int], _T], count: int, num_threads: int) -> list[_T]:
    """``work(i)`` for 0..count-1, from several threads; of the exceptions, that of the lowest number is raised.

    The caller works, too, and does not wait for threads that have not begun because others keep them busy.
    """
    workers = min(num_threads, count) - 1
    if workers <= 0:
        return [work(i) for i in range(count)]
    results: dict[int, _T] = {}
    errors: dict[int, BaseException] = {}
    numbers = itertools.count()

    def loop() -> None:
        while not errors and (i := next(numbers)) < count:
            try:
                results[i] = work(i)
            except BaseException as error:
                errors[i] = error

    others = [pool(workers).submit(loop) for _ in range(workers)]
    loop()
    for other in others:
        if not other.cancel():
            other.result()
    if errors:  # numbers are given out in order, and whatever was given out has been tried
        raise errors[min(errors)]
    return [results[i] for i in range(count)]
