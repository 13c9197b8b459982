"""Reports how far long work is. Nothing is shown unless a display is set, which the command line does. Also durations
and counts in words."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Sized
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Protocol, TypeVar

MB = 1e6  # bytes

_T = TypeVar("_T")


class Display(Protocol):
    """Shows tasks: `begin` returns the number of a task, which `move` and `end` are called with.

    `unit`: what the total counts, if a rate is worth showing.
    """

    def begin(self, title: str, total: float | None, unit: str) -> int: ...
    def move(self, task: int, done: float) -> None: ...
    def end(self, task: int) -> None: ...


_display: ContextVar[Display | None] = ContextVar("display", default=None)


class _Part:
    """Holds a part of a task, from `begin` to `end`, that other tasks with a unit move. One at a time does."""

    def __init__(self, move: Callable[[float], None], begin: float, end: float):
        self._move, self._at, self._size, self._share = move, begin, end - begin, 0.0
        self.taken = False

    def move(self, share: float) -> None:
        """Moves the task, never back: several tasks may follow each other in one part."""
        self._share = max(self._share, min(1.0, share))
        self._move(self._at + self._share * self._size)


_part: ContextVar[_Part | None] = ContextVar("part", default=None)


@contextmanager
def shown_on(display: Display | None) -> Iterator[None]:
    """Shows the work in the block on `display`; with None it is not shown."""
    token = _display.set(display)
    try:
        yield
    finally:
        _display.reset(token)


@contextmanager
def working(title: str, total: float | None = None, unit: str = "") -> Iterator[Callable[[float], None]]:
    """Shows the block as a task. Yields a function to call with the amount of `total` that is done. With a `unit`
    the rate is shown too ("12.5 questions/s"), and the task moves an outer one (`moving`)."""
    display = _display.get()
    if display is None:
        yield lambda done: None
        return
    task, part = display.begin(title, total or None, unit), _part.get()
    if not (total and unit) or part is None or part.taken:
        part = None
    else:
        part.taken = True

    def move(done: float) -> None:
        display.move(task, done)
        if part is not None and total:
            part.move(done / total)

    try:
        yield move
    finally:
        display.end(task)
        if part is not None:
            part.taken = False


@contextmanager
def moving(move: Callable[[float], None], begin: float, end: float) -> Iterator[None]:
    """Lets those tasks of the block that have a unit move an outer task from `begin` to `end`. `move`: of that task."""
    token = _part.set(_Part(move, begin, end))
    try:
        yield
    finally:
        _part.reset(token)
    move(end)


def counted(title: str, items: Iterable[_T], total: int | None = None, unit: str = "") -> Iterator[_T]:
    """Yields the items, and shows as a task how many are done. `total`: their number, if they have no `len`."""
    with working(title, len(items) if isinstance(items, Sized) else total, unit) as move:
        for done, item in enumerate(items, 1):
            yield item
            move(done)


@contextmanager
def working_bytes(title: str, size: int) -> Iterator[Callable[[float], None]]:
    """Shows the block as a task of `size` bytes. Yields a function to call with the bytes that are done."""
    with working(title, size / MB, "MB") as move:
        yield lambda done: move(done / MB)


def weighed(title: str, items: Collection[_T], size: Callable[[_T], int]) -> Iterator[_T]:
    """Yields the items, and shows as a task how much is done. `size`: the bytes of an item."""
    done = 0
    with working_bytes(title, sum(map(size, items))) as move:
        for item in items:
            yield item
            move(done := done + size(item))


def duration(seconds: float) -> str:
    """Returns a duration in at most two units: "41 s", "12 min 30 s", "5 h 02 min", "3 d 04 h"."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    if whole < 86400:
        return f"{whole // 3600} h {whole % 3600 // 60:02d} min"
    return f"{whole // 86400} d {whole % 86400 // 3600:02d} h"


def plural(n: int, one: str, several: str | None = None) -> str:
    """Returns "1 run" or "2 runs"."""
    return f"{n:,} {one if n == 1 else several or one + 's'}"
