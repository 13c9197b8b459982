"""Stopping on a signal: the handler sets a flag, the loop sees it, saves and ends.

SIGTERM and SIGUSR1 are what schedulers send, SIGINT is Ctrl-C. Nothing else happens inside the
handler, because it may run in the middle of a collective or a save; only where a process merely
waits or prepares (`Stop.interrupting`) it ends the waiting.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from multiprocessing import connection
from types import FrameType, TracebackType
from typing import Any, TypeVar

SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)
T = TypeVar("T")


class Interrupted(BaseException):
    """A stop was asked for while nothing was under way that had to be ended in order.

    Like KeyboardInterrupt no `Exception`: nobody on the way up is to mistake it for a fault.
    """


class Stop:
    """While open, `requested` is the number of the first signal that asked to stop, else None.

    A second signal kills at once, as if nobody listened. Signals within `grace` seconds of the
    first are the same request: one Ctrl-C reaches a process from the terminal and again from its
    launcher. Outside the main thread Python allows no handlers, and `requested` stays None.
    """

    def __init__(self, grace: float = 2.0):
        self.requested: int | None = None
        self._grace = grace
        self._first = 0.0
        self._interrupts = False
        self._before: dict[int, Any] = {}

    def __enter__(self) -> Stop:
        if threading.current_thread() is threading.main_thread():
            for signum in SIGNALS:
                # None stands for a handler that C code installed, which cannot be put back.
                self._before[signum] = signal.signal(signum, self._note) or signal.SIG_DFL
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for signum, handler in self._before.items():
            signal.signal(signum, handler)
        self._before.clear()

    def check(self) -> None:
        """Raises `Interrupted` once a stop is asked for."""
        if self.requested is not None:
            raise Interrupted

    @contextmanager
    def interrupting(self) -> Iterator[None]:
        """A block that a signal ends with `Interrupted`, wherever it is: one that may be left half done."""
        self._interrupts = True
        try:
            self.check()
            yield
        finally:
            self._interrupts = False

    def _note(self, signum: int, frame: FrameType | None) -> None:
        now = time.monotonic()
        if self.requested is None:
            self.requested, self._first = signum, now
            if self._interrupts:
                self._interrupts = False
                raise Interrupted
        elif now - self._first >= self._grace:
            signal.signal(signum, signal.SIG_DFL)
            os.kill(os.getpid(), signum)


def until(stop: Stop, items: Iterable[T]) -> Iterator[T]:
    """The items, up to the stop: one that is waited for when it comes is waited for no longer."""
    waited = iter(items)
    while True:
        try:
            with stop.interrupting():
                item = next(waited)
        except (StopIteration, Interrupted):
            return
        yield item


def exit_code(signum: int) -> int:
    """What a run that saved and stopped exits with: 130 after Ctrl-C, 143 after the others."""
    return 130 if signum == signal.SIGINT else 143


def ignore_in_worker(worker_id: int) -> None:
    """For `worker_init_fn`: a data worker leaves stopping to its parent, and goes when that is gone.

    A signal to the whole process group would otherwise end the workers before the parent has
    saved, and the parent would die of a lost worker instead. The loader ends them explicitly; a
    parent that was killed cannot, and a fork server and its workers keep each other alive for ever.
    """
    for signum in SIGNALS:
        signal.signal(signum, signal.SIG_IGN)
    parent = multiprocessing.parent_process()
    if parent is not None:
        threading.Thread(target=_go_with, args=(parent.sentinel,), daemon=True).start()


def _go_with(sentinel: int) -> None:
    connection.wait([sentinel])
    os._exit(1)
