"""Runs many lmmkit commands, a few side by side and each after those that it needs; a failed one ends no other."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

from lmmkit.commands.support.common import err
from lmmkit.commands.support.jobs import SHOWN, Job, noted_signals, stop_all
from lmmkit.errors import MachineError
from lmmkit.progress import duration

LOOK = 0.2  # seconds between two looks at the processes


@dataclass(frozen=True)
class Failure:
    """Describes why a work of a queue is not done: its log or what it needed, and the exit code."""

    reason: str
    code: int


@dataclass(frozen=True, kw_only=True)
class Took:
    """Holds what a command took, from its start to its end."""

    cpu_seconds: float = 0.0
    wall_seconds: float = 0.0


class Work(Protocol):
    """Describes one command of a queue.

    `begin` starts it and returns its job; "done" if nothing is left to do, "busy" if another process does it. `end` is
    called once for each job that has ended, in whichever way; afterwards `took` is known.
    """

    @property
    def name(self) -> str: ...
    @property
    def after(self) -> Sequence[str]: ...
    @property
    def took(self) -> Took: ...
    def begin(self) -> Job | Literal["done", "busy"]: ...
    def end(self, job: Job) -> None: ...


class _Queue:
    """Holds the work that waits, the jobs that run, and what has ended."""

    def __init__(self, queue: Sequence[Work], side: int, label: Callable[[str], str]):
        self.side, self.label = side, label
        self.names = {work.name for work in queue}
        self.waiting = list(queue)
        self.running: dict[str, tuple[Work, Job]] = {}
        self.done: set[str] = set()
        self.failed: dict[str, Failure] = {}
        self._noted: set[str] = set()

    @property
    def jobs(self) -> list[Job]:
        """Returns the running jobs."""
        return [job for _, job in self.running.values()]

    def collect_ended(self) -> None:
        """Takes out the jobs that have ended, and reports them."""
        for name, (work, job) in list(self.running.items()):
            if job.running:
                continue
            del self.running[name]
            work.end(job)
            if job.failed:
                self.failed[name] = Failure(str(job.log), _code(job))
                err.print(f"failed: {self.label(name)}: {job.log}: {job.last_line()}")
            else:
                self.done.add(name)
                ended = f"{len(self.done)} of {len(self.names)}"
                err.print(f"done: {self.label(name)}: {_took(work.took)}; {ended}")

    def start_ready(self) -> None:
        """Begins the work that has what it needs, as far as there is room. What it needs may have failed."""
        for work in list(self.waiting):
            if lacking := [name for name in work.after if name in self.failed]:
                self.failed[work.name] = Failure(f"needs {lacking[0]}", self.failed[lacking[0]].code)
                self.waiting.remove(work)
            elif len(self.running) < self.side and self.done >= self.names.intersection(work.after):
                self._begin(work)

    def _begin(self, work: Work) -> None:
        """Begins one work, unless another process does it."""
        begun = work.begin()
        if begun == "busy":
            if work.name not in self._noted:
                self._noted.add(work.name)
                err.print(f"{self.label(work.name)}: waits for another process that works on it")
            return
        self.waiting.remove(work)
        if begun == "done":
            self.done.add(work.name)
            return
        self.running[work.name] = work, begun
        err.print(f"started: {self.label(work.name)}")

    def stop(self, received: Sequence[int]) -> None:
        """Stops the jobs that still run. `received`: the signals."""
        stop_all(self.jobs, received)
        for work, job in self.running.values():
            work.end(job)


def run_queue(
    queue: Sequence[Work],
    side: int,
    show: Callable[[Sequence[Job], Collection[str]], None],
    label: Callable[[str], str] = str,
) -> dict[str, Failure]:
    """Runs the work, `side` commands at once. What a work needs and the queue does not have is done already. `show` is
    called every second with the running jobs and the names of what has ended. `label`: a name in words.

    Returns what has failed, by name.

    Raises:
        KeyboardInterrupt: after a signal, with its number, when all jobs have saved and ended.
    """
    state, shown = _Queue(queue, side, label), float("-inf")
    with noted_signals() as received:
        try:
            while state.waiting or state.running:
                if received:
                    raise KeyboardInterrupt(received[0])
                state.collect_ended()
                state.start_ready()
                if time.monotonic() - shown >= SHOWN:
                    shown = time.monotonic()
                    show(state.jobs, state.done | state.failed.keys())
                time.sleep(LOOK)
        finally:
            state.stop(received)
    return state.failed


def _took(took: Took) -> str:
    return f"{duration(took.wall_seconds)}, {took.cpu_seconds:,.0f} CPU s"


def _code(job: Job) -> int:
    """Returns the exit code of a failed job; that of the machine if a signal ended it."""
    code = job.process.returncode if job.process is not None else 0
    return code if code > 0 else MachineError.exit_code
