"""Stopping on a signal: the handler sets a flag, the loop sees it, saves and ends.

SIGTERM and SIGUSR1 are what schedulers send, SIGINT is Ctrl-C. Nothing happens inside the
handler, because it may run in the middle of a collective or a save.
"""

from __future__ import annotations

import os
import signal
import threading
import time
from types import FrameType, TracebackType
from typing import Any

SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)


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

    def _note(self, signum: int, frame: FrameType | None) -> None:
        now = time.monotonic()
        if self.requested is None:
            self.requested, self._first = signum, now
        elif now - self._first >= self._grace:
            signal.signal(signum, signal.SIG_DFL)
            os.kill(os.getpid(), signum)


def exit_code(signum: int) -> int:
    """What a run that saved and stopped exits with: 130 after Ctrl-C, 143 after the others."""
    return 130 if signum == signal.SIGINT else 143


def ignore_in_worker(worker_id: int) -> None:
    """For `worker_init_fn`: a data worker leaves stopping to its parent.

    A signal to the whole process group would otherwise end the workers before the parent has
    saved, and the parent would die of a lost worker instead. The loader ends them explicitly.
    """
    for signum in SIGNALS:
        signal.signal(signum, signal.SIG_IGN)
