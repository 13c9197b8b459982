"""Reports how far long work is. Nothing is shown unless a display is set, which the command line does."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sized
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Protocol, TypeVar

_T = TypeVar("_T")


class Display(Protocol):
    """Shows tasks: `begin` returns the number of a task, which `move` and `end` are called with."""

    def begin(self, title: str, total: float | None) -> int: ...
    def move(self, task: int, done: float) -> None: ...
    def end(self, task: int) -> None: ...


_display: ContextVar[Display | None] = ContextVar("display", default=None)


class _Part:
    """Holds a part of a task, from `begin` to `end`, that other tasks move. One of them at a time does."""

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
def working(title: str, total: float | None = None) -> Iterator[Callable[[float], None]]:
    """Shows the block as a task. Yields a function to call with the amount of `total` that is done."""
    display = _display.get()
    if display is None:
        yield lambda done: None
        return
    task, part = display.begin(title, total or None), _part.get()
    if not total or part is None or part.taken:
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
    """Lets the tasks of the block move an outer task from `begin` to `end`. `move`: of that task."""
    token = _part.set(_Part(move, begin, end))
    try:
        yield
    finally:
        _part.reset(token)
    move(end)


def counted(title: str, items: Iterable[_T], total: int | None = None) -> Iterator[_T]:
    """Yields the items, and shows as a task how many are done. `total`: their number, if they have no `len`."""
    with working(title, len(items) if isinstance(items, Sized) else total) as move:
        for done, item in enumerate(items, 1):
            yield item
            move(done)
