"""Runs lmmkit commands side by side in other processes, shows how far they are, and stops them together."""

from __future__ import annotations

import os
import resource
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

import typer

from lmmkit.commands.support.common import err
from lmmkit.commands.support.progress_display import REPORT, reported_share
from lmmkit.errors import MachineError

SHOWN = 1.0  # seconds between two looks at how far the jobs are
PATIENCE = 120.0  # seconds that a stopped command may take to save


class MeasuredProcess(subprocess.Popen):
    """Is a process that keeps what it used: `usage`, with that of its own processes, once `poll` finds its end."""

    usage: resource.struct_rusage | None = None

    def poll(self) -> int | None:
        """Returns the exit code, or None as long as the process runs."""
        if self.returncode is None:
            pid, status, used = os.wait4(self.pid, os.WNOHANG)
            if pid:
                self.returncode, self.usage = os.waitstatus_to_exitcode(status), used
        return self.returncode


@dataclass
class Job:
    """Describes a lmmkit command that runs in a separate process and prints to logs/<name>.log.

    `progress` returns the share of its work that is done, from 0 to 1; without it the command reports its share.
    `then` starts when the job has ended well. `handles`: those of files that the command inherits.
    """

    name: str
    arguments: list[str]
    logs: Path
    progress: Callable[[], float] | None = None
    then: Job | None = None
    handles: tuple[int, ...] = ()
    process: MeasuredProcess | None = field(init=False, default=None, repr=False)

    @property
    def line(self) -> str:
        """Returns the command as a shell takes it."""
        return shlex.join(["lmmkit", *self.arguments])

    @property
    def log(self) -> Path:
        """Returns the path of the log file."""
        return self.logs / f"{self.name.replace(' ', '-')}.log"

    @property
    def report(self) -> Path:
        """Returns the path of the file where the command reports its share."""
        return self.log.with_suffix(".progress")

    def share(self) -> float:
        """Returns the share of the work that is done, from 0 to 1."""
        return reported_share(self.report) if self.progress is None else self.progress()

    @property
    def running(self) -> bool:
        """Returns whether the command has started and not ended."""
        return self.process is not None and self.process.poll() is None

    @property
    def failed(self) -> bool:
        """Returns whether the command ended with an exit code other than 0."""
        return self.process is not None and self.process.poll() not in (None, 0)

    def start(self) -> None:
        """Starts the command with one CPU thread, and prints it."""
        err.print(f"$ {self.line}")
        self.logs.mkdir(parents=True, exist_ok=True)
        self.report.unlink(missing_ok=True)
        command = [sys.executable, "-m", "lmmkit", *self.arguments]
        with self.log.open("a") as log:
            log.write(f"$ {self.line}\n")
            log.flush()
            env = {**os.environ, "OMP_NUM_THREADS": "1"}
            if self.progress is None:
                env[REPORT] = str(self.report)
            self.process = MeasuredProcess(
                command, stdout=log, stderr=subprocess.STDOUT, env=env, pass_fds=self.handles
            )

    def last_line(self) -> str:
        """Returns the last line of the log, or nothing."""
        lines = [line for line in self.log.read_text(errors="replace").splitlines() if line.strip()]
        return lines[-1] if lines else ""


class ShowJobs(Protocol):
    """Shows the state of the running jobs; called every second."""

    def __call__(self, jobs: Sequence[Job]) -> None: ...


def run_all(jobs: Sequence[Job], show: ShowJobs) -> None:
    """Runs the jobs side by side, and after each of them the job that follows it.

    Raises:
        typer.Exit: with the exit code of a failed job; its log is printed, and the other jobs are stopped.
        KeyboardInterrupt: after a signal, when all jobs have saved and ended.
    """
    jobs = list(jobs)
    with noted_signals() as received:
        try:
            for job in jobs:
                job.start()
            shown = float("-inf")
            while True:
                jobs += _followers(jobs)
                if received:  # Ctrl-C reaches the jobs too, which then end with an exit code of their own
                    raise KeyboardInterrupt
                if not any(job.running for job in jobs) or any(job.failed for job in jobs):
                    break
                time.sleep(0.2)
                if time.monotonic() - shown >= SHOWN:
                    shown = time.monotonic()
                    show(jobs)
            failed = next((job for job in jobs if job.failed), None)
        finally:
            stop_all(jobs, received)
    if failed is not None:
        err.print(f"`{failed.line}` failed ({failed.log}):")
        err.print(failed.log.read_text(errors="replace"))
        code = failed.process.returncode if failed.process is not None else 0
        raise typer.Exit(code if code > 0 else MachineError.exit_code)


def _followers(jobs: Sequence[Job]) -> list[Job]:
    """Starts the jobs that follow those that have ended well, and returns them."""
    ended = [job for job in jobs if job.process is not None and job.process.poll() == 0]
    ready = [job.then for job in ended if job.then is not None and job.then.process is None]
    for job in ready:
        job.start()
    return ready


def stop_all(jobs: Sequence[Job], received: Sequence[int]) -> None:
    """Asks every running job to stop, waits for its checkpoint, and kills those that do not end. A further
    signal ends the waiting."""
    running = [job.process for job in jobs if job.process is not None and job.running]
    for process in running:
        process.terminate()
    until, before = time.monotonic() + PATIENCE, len(received)
    while any(process.poll() is None for process in running):
        if time.monotonic() > until or len(received) > before:
            for process in running:
                process.kill()
        time.sleep(0.05)


@contextmanager
def noted_signals() -> Iterator[list[int]]:
    """Yields a list that gets the SIGINT, SIGTERM and SIGHUP of the block, which interrupt nothing: a signal
    while a command starts would leave a process that nothing stops."""
    received: list[int] = []
    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    before = {number: signal.signal(number, lambda n, frame: received.append(n)) for number in numbers}
    try:
        yield received
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
