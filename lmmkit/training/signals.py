"""Stopping on a signal: the handler sets a flag; the loop reads it, saves and ends.

Schedulers send SIGTERM and SIGUSR1; SIGINT is Ctrl-C. The handler does nothing more, because it may run
during a collective or a save. Only while a process waits or prepares (`Stop.interrupting`) does it raise
`Interrupted`.
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
_T = TypeVar("_T")


class Interrupted(BaseException):
    """Reports a stop request at a point where no work must be finished first.

    It is no `Exception`, like KeyboardInterrupt, so that no `except Exception` treats it as a failure.
    """


class Stop:
    """Listens for stop signals while open; `requested` is the number of the first one, None before it.

    A second signal kills the process at once, by the default handler. Signals within `grace` seconds after
    the first are the same request: one Ctrl-C reaches a process from the terminal and again from its
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
                # None means a handler installed by C code, which Python cannot restore.
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
        """Raises `Interrupted` if a stop is requested."""
        if self.requested is not None:
            raise Interrupted

    @contextmanager
    def interrupting(self) -> Iterator[None]:
        """Raises `Interrupted` in the block once a signal arrives. The block must be safe to abandon."""
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


def until(stop: Stop, items: Iterable[_T]) -> Iterator[_T]:
    """Yields items until a stop is requested; a pending wait is interrupted."""
    waited = iter(items)
    while True:
        try:
            with stop.interrupting():
                item = next(waited)
        except (StopIteration, Interrupted):
            return
        yield item


def exit_code(signum: int) -> int:
    """Returns the exit code of a run that saved and stopped: 130 after Ctrl-C, 143 after other signals."""
    return 130 if signum == signal.SIGINT else 143


def ignore_in_worker(worker_id: int) -> None:
    """Makes a data worker ignore stop signals and exit when its parent has exited. For `worker_init_fn`.

    A signal to the process group would otherwise end the workers before the parent has saved, and the parent
    would fail because of a lost worker. The loader ends the workers explicitly. A killed parent cannot, and a
    fork server and its workers would keep each other alive forever.
    """
    for signum in SIGNALS:
        signal.signal(signum, signal.SIG_IGN)
    parent = multiprocessing.parent_process()
    if parent is not None:
        threading.Thread(target=_go_with, args=(parent.sentinel,), daemon=True).start()


def _go_with(sentinel: int) -> None:
    connection.wait([sentinel])
    os._exit(1)
