"""Loads the steps of a stage in order, in data workers. The state of the data is one integer, the step.

A resumed run builds a new loader that starts at its step. No state of a loader is saved, so the number
of workers may change between runs.
"""

from __future__ import annotations

import math
import threading
import time
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing import active_children
from multiprocessing.process import BaseProcess
from typing import TypeVar

import torch
from torch.utils.data import Dataset
from torchdata.stateful_dataloader import StatefulDataLoader

from lmmkit.api.batch import Step
from lmmkit.data.pipeline import Pipeline
from lmmkit.data.sources.bad_records import BadRecord
from lmmkit.errors import MachineError, Problem, UserError
from lmmkit.errors.data import WORKER_DIED, WORKER_HUNG

TIMEOUT = 300.0  # seconds a worker may take for one step
Skipped = tuple[tuple[str, BadRecord], ...]  # the bad records of a step, each with its source
T = TypeVar("T")


@dataclass(frozen=True)
class _Bad:
    """Holds the problems of a step with bad data. The worker returns it; the main process raises."""

    problems: tuple[Problem, ...]


class _Steps(Dataset):
    def __init__(self, pipeline: Pipeline):
        self.pipeline = pipeline

    def __getitem__(self, index: int) -> tuple[Step, Skipped] | _Bad:
        try:
            return self.pipeline.step_and_skipped(index)
        except UserError as error:
            return _Bad(error.problems)


def load_steps(
    pipeline: Pipeline, start: int, stop: int, *, workers: int, worker_init: Callable[[int], None],
    on_skipped: Callable[[int, Skipped], None] = lambda index, skipped: None, timeout: float = TIMEOUT,
) -> Iterator[Step]:  # fmt: skip
    """Yields steps `start` to `stop - 1`. Calls `on_skipped` with each step and the records it skipped.

    Raises `UserError` for a bad record or image, and `MachineError` when a worker dies or does not
    answer for `timeout` seconds.
    """
    with warnings.catch_warnings():  # torchdata 0.11 calls a function that torch deprecated
        warnings.filterwarnings("ignore", message="'set_vital' is deprecated")
        loader = StatefulDataLoader(
            _Steps(pipeline), batch_size=None, sampler=range(start, stop), num_workers=workers,
            worker_init_fn=worker_init,
            multiprocessing_context="forkserver" if workers else None,
            generator=torch.Generator(),  # it draws a seed when it opens: keep dropout's generator unchanged
        )  # fmt: skip
    for index, got in enumerate(_watched(loader, start, timeout), start):
        if isinstance(got, _Bad):
            raise UserError(got.problems)
        step, skipped = got
        on_skipped(index, skipped)
        yield step


def _watched(loader: Iterable[T], start: int, timeout: float) -> Iterator[T]:
    """Yields the items of the loader. Raises `MachineError` for a lost worker."""
    index, before = start, set(active_children())
    steps = iter(loader)  # kept until the end: its deletion waits seconds for live workers
    watch = _WorkerTimeout(timeout, [each for each in active_children() if each not in before])
    try:
        with watch:
            while True:
                with watch.waiting():
                    got = next(steps, None)
                if got is None:
                    return
                yield got
                index += 1
    except (RuntimeError, EOFError, ConnectionError) as error:
        if isinstance(error, RuntimeError) and "DataLoader" not in str(error):
            raise
        raise _lost(error, index, timeout if watch.hung.is_set() else None) from error
    finally:
        # After an early exit a worker may still read a slow record, and it ignores signals. Do not wait.
        for worker in set(active_children()) - before:
            worker.kill()


def _lost(error: Exception, index: int, timeout: float | None) -> MachineError:
    """Returns the error for a lost worker. `timeout`: it was killed after this long without an answer."""
    where = f"data workers, at or before step {index + 1} of the stage"
    if timeout is not None:
        return MachineError(WORKER_HUNG.at(where, got=f"no answer for {timeout:g} s"))
    reason = (str(error).strip() or type(error).__name__).splitlines()[0][:200]
    return MachineError(WORKER_DIED.at(where, got=f"a worker that died: {reason}"))


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
