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
    waiting, running, names = list(queue), dict[str, tuple[Work, Job]](), {work.name for work in queue}
    done, noted, failed = set[str](), set[str](), dict[str, Failure]()
    with noted_signals() as received:
        try:
            shown = float("-inf")
            while waiting or running:
                if received:
                    raise KeyboardInterrupt(received[0])
                for name, (work, job) in list(running.items()):
                    if job.running:
                        continue
                    del running[name]
                    work.end(job)
                    if job.failed:
                        failed[name] = Failure(str(job.log), _code(job))
                        err.print(f"failed: {label(name)}: {job.log}: {job.last_line()}")
                    else:
                        done.add(name)
                        err.print(f"done: {label(name)}: {_took(work.took)}; {len(done)} of {len(names)}")
                for work in list(waiting):
                    if lacking := [name for name in work.after if name in failed]:
                        failed[work.name] = Failure(f"needs {lacking[0]}", failed[lacking[0]].code)
                        waiting.remove(work)
                    elif len(running) < side and done >= names.intersection(work.after):
                        begun = work.begin()
                        if begun == "busy":
                            if work.name not in noted:
                                noted.add(work.name)
                                err.print(f"{label(work.name)}: waits for another process that works on it")
                            continue
                        waiting.remove(work)
                        if begun == "done":
                            done.add(work.name)
                        else:
                            running[work.name] = work, begun
                            err.print(f"started: {label(work.name)}")
                if time.monotonic() - shown >= SHOWN:
                    shown = time.monotonic()
                    show([job for _, job in running.values()], done | failed.keys())
                time.sleep(LOOK)
        finally:
            stop_all([job for _, job in running.values()], received)
            for work, job in running.values():
                work.end(job)
    return failed


def _took(took: Took) -> str:
    return f"{duration(took.wall_seconds)}, {took.cpu_seconds:,.0f} CPU s"


def _code(job: Job) -> int:
    """Returns the exit code of a failed job; that of the machine if a signal ended it."""
    code = job.process.returncode if job.process is not None else 0
    return code if code > 0 else MachineError.exit_code
