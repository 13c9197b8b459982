"""Loads the steps of a stage in order, in data workers. The state of the data is one integer, the step.

A resumed run builds a new loader that starts at its step. No state of a loader is saved, so the number
of workers may change between runs.
"""

from __future__ import annotations

import math
import multiprocessing
import os
import signal
import sys
import threading
import time
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing import active_children
from multiprocessing.connection import wait
from multiprocessing.context import BaseContext
from multiprocessing.process import BaseProcess
from multiprocessing.queues import Queue
from typing import TypeVar

import torch
from torch.utils.data import Dataset, get_worker_info
from torchdata.stateful_dataloader import StatefulDataLoader

from lmmkit.api.batch import Step
from lmmkit.data.pipeline import Pipeline
from lmmkit.data.sources.bad_records import BadRecord
from lmmkit.data.step_transfer import Transferred, from_block, to_block
from lmmkit.errors import MachineError, Problem, UserError
from lmmkit.errors.data import STEP_REFUSED, WORKER_DIED, WORKER_HUNG

TIMEOUT = 300.0  # seconds a worker may take for one step
UNSENT = 74  # exit code of a worker that cannot send a step
Skipped = tuple[tuple[str, BadRecord], ...]  # the bad records of a step, each with its source
T = TypeVar("T")


@dataclass(frozen=True)
class _Bad:
    """Holds the problems of a step with bad data. The worker returns it; the main process raises."""

    problems: tuple[Problem, ...]


@dataclass(frozen=True)
class _Refused:
    """Holds the reason why the system refused a step: no memory, too many open files, ..."""

    reason: str


class _Steps(Dataset):
    def __init__(self, pipeline: Pipeline):
        self.pipeline = pipeline

    def __getitem__(self, index: int) -> tuple[Step | Transferred, Skipped] | _Bad | _Refused:
        try:
            step, skipped = self.pipeline.step_and_skipped(index)
            return (to_block(step) if get_worker_info() else step), skipped
        except UserError as error:
            return _Bad(error.problems)
        except (OSError, MemoryError) as error:
            return _Refused(f"{type(error).__name__}: {error}")


@dataclass(frozen=True)
class _WorkerStart:
    """Prepares a data worker: calls `init`, and ends the worker if it cannot send an item. Python's queue
    would only print that error, and the main process would wait for the item."""

    init: Callable[[int], None]

    def __call__(self, worker_id: int) -> None:
        Queue._on_queue_feeder_error = staticmethod(_end_worker)  # type: ignore[method-assign]
        self.init(worker_id)


def _end_worker(error: Exception, item: object) -> None:
    print(f"a data worker cannot send a step: {type(error).__name__}: {error}", file=sys.stderr, flush=True)
    os._exit(UNSENT)


def load_steps(
    pipeline: Pipeline, start: int, stop: int, *, workers: int, worker_init: Callable[[int], None],
    on_skipped: Callable[[int, Skipped], None] = lambda index, skipped: None, timeout: float = TIMEOUT,
) -> Iterator[Step]:  # fmt: skip
    """Yields steps `start` to `stop - 1`. Calls `on_skipped` with each step and the records it skipped.

    Raises `UserError` for a bad record or image, and `MachineError` when the system refuses memory or files,
    and when a worker dies or does not answer for `timeout` seconds. Another error of a worker is raised as it is.
    """
    with warnings.catch_warnings():  # torchdata 0.11 calls a function that torch deprecated
        warnings.filterwarnings("ignore", message="'set_vital' is deprecated")
        loader = StatefulDataLoader(
            _Steps(pipeline), batch_size=None, sampler=range(start, stop), num_workers=workers,
            worker_init_fn=_WorkerStart(worker_init),
            multiprocessing_context=_forking() if workers else None,
            generator=torch.Generator(),  # it draws a seed when it opens: keep dropout's generator unchanged
        )  # fmt: skip
    for index, got in enumerate(_watched(loader, start, timeout), start):
        if isinstance(got, _Bad):
            raise UserError(got.problems)
        if isinstance(got, _Refused):
            raise MachineError(STEP_REFUSED.at(_where(index), got=got.reason))
        step, skipped = got
        on_skipped(index, skipped)
        yield from_block(step) if isinstance(step, Transferred) else step


def _forking() -> BaseContext:
    """Returns the way to start workers: as forks of a server that has imported torch and this module once.

    Otherwise each worker would import them itself, which takes seconds and memory.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["__main__", __name__])  # "__main__" alone is Python's default
    return context


def _watched(loader: Iterable[T], start: int, timeout: float) -> Iterator[T]:
    """Yields the items of the loader. Raises `MachineError` for a lost worker."""
    index, before, watch = start, set(active_children()), None
    try:
        steps = iter(loader)  # kept until the end: its deletion waits seconds for live workers
        watch = _WorkerTimeout(timeout, [each for each in active_children() if each not in before])
        with watch:
            while True:
                with watch.waiting():
                    got = next(steps, None)
                if got is None:
                    return
                yield got
                index += 1
    except (RuntimeError, EOFError, OSError) as error:
        if str(error).startswith("Caught "):  # torch's words for an error that a worker raised
            raise
        workers = (
            [each for each in active_children() if each not in before] if watch is None else watch.workers
        )
        if watch is not None and watch.hung.is_set():
            raise MachineError(WORKER_HUNG.at(_where(index), got=f"no answer for {timeout:g} s")) from error
        dead = _dead(workers)
        if not dead and isinstance(error, EOFError):  # no answer to the request for a worker
            dead = ["the process that starts workers ended"]
        if dead:
            raise MachineError(WORKER_DIED.at(_where(index), got=", ".join(dead))) from error
        if isinstance(error, OSError) or "open files" in str(error):
            got = f"{type(error).__name__}: {str(error).splitlines()[0][:200]}"
            raise MachineError(STEP_REFUSED.at(_where(index), got=got)) from error
        raise
    finally:
        # After an early exit a worker may still read a slow record, and it ignores signals. Do not wait.
        for worker in set(active_children()) - before:
            worker.kill()


def _where(index: int) -> str:
    return f"data workers, at or before step {index + 1} of the stage"


def _dead(workers: Sequence[BaseProcess]) -> list[str]:
    """Returns how each worker ended that has ended, or ends within a second."""
    wait([worker.sentinel for worker in workers], timeout=1.0)
    return [_ending(worker) for worker in workers if worker.exitcode is not None]


def _ending(worker: BaseProcess) -> str:
    """Returns how a worker ended: "worker 1234 killed by SIGKILL", "worker 1234 exited with code 1"."""
    code = worker.exitcode or 0
    if code == UNSENT:
        return f"worker {worker.pid} could not send a step (its message is above)"
    how = f"killed by {signal.Signals(-code).name}" if code < 0 else f"exited with code {code}"
    return f"worker {worker.pid} {how}"


class _WorkerTimeout:
    """Kills workers that do not answer in time. The timeout of the loader is not used: with it, the
    loader would notice a dead worker only after the timeout; without it, it checks every five seconds."""

    def __init__(self, timeout: float, workers: Sequence[BaseProcess]) -> None:
        self.timeout, self.workers = timeout, workers
        self.until = math.inf
        self.hung, self._done = threading.Event(), threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> _WorkerTimeout:
        if self.workers:
            self._thread.start()
        return self

    def __exit__(self, *caught: object) -> None:
        self._done.set()

    @contextmanager
    def waiting(self) -> Iterator[None]:
        """Counts the time in the block against the timeout."""
        self.until = time.monotonic() + self.timeout
        try:
            yield
        finally:
            self.until = math.inf

    def _watch(self) -> None:
        while not self._done.wait(min(1.0, self.timeout / 4)):
            if time.monotonic() > self.until:
                self.hung.set()
                for worker in self.workers:
                    worker.kill()
                return
