"""Reports how far long work is. Nothing is shown unless a display is set, which the command line does."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sized
from contextlib import contextmanager
from contextvars import ContextVar
from functools import partial
from typing import Protocol, TypeVar

_T = TypeVar("_T")


class Display(Protocol):
    """Shows tasks: `begin` returns the number of a task, which `move` and `end` are called with."""

    def begin(self, title: str, total: float | None) -> int: ...
    def move(self, task: int, done: float) -> None: ...
    def end(self, task: int) -> None: ...


_display: ContextVar[Display | None] = ContextVar("display", default=None)


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
    task = display.begin(title, total or None)
    try:
        yield partial(display.move, task)
    finally:
        display.end(task)


def counted(title: str, items: Iterable[_T], total: int | None = None) -> Iterator[_T]:
    """Yields the items, and shows as a task how many are done. `total`: their number, if they have no `len`."""
    with working(title, len(items) if isinstance(items, Sized) else total) as move:
        for done, item in enumerate(items, 1):
            yield item
            move(done)
