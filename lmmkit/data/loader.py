"""Steps in order, from data workers; the state of the data is one integer.

A resumed run builds a new loader that starts at its step: nothing of a loader is ever saved, so
worker counts may change between runs.
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
StepAndSkipped = tuple[tuple[str, BadRecord], ...]  # rows that were passed over, by source
T = TypeVar("T")


@dataclass(frozen=True)
class _Bad:
    """A step that bad data spoilt; travels from the worker as a value, to be raised at home."""

    problems: tuple[Problem, ...]


class _Steps(Dataset):
    def __init__(self, pipeline: Pipeline):
        self.pipeline = pipeline

    def __getitem__(self, index: int) -> tuple[Step, StepAndSkipped] | _Bad:
        try:
            return self.pipeline.step_and_skipped(index)
        except UserError as error:
            return _Bad(error.problems)


def load_steps(
    pipeline: Pipeline, start: int, stop: int, *, workers: int, worker_init: Callable[[int], None],
    step_and_skipped: Callable[[int, StepAndSkipped], None] = lambda index, bad: None, timeout: float = TIMEOUT,
) -> Iterator[Step]:  # fmt: skip
    """Steps `start` to `stop - 1`; `sifted` is told which rows of each were passed over.

    Raises `UserError` when a row or image turns out bad, `MachineError` when a worker dies, or is
    silent for `timeout` seconds.
    """
    with warnings.catch_warnings():  # torchdata 0.11 calls what torch has made a deprecated no-op
        warnings.filterwarnings("ignore", message="'set_vital' is deprecated")
        loader = StatefulDataLoader(
            _Steps(pipeline), batch_size=None, sampler=range(start, stop), num_workers=workers,
            worker_init_fn=worker_init,
            multiprocessing_context="forkserver" if workers else None,
            generator=torch.Generator(),  # it draws a seed as it opens: not from what dropout draws from
        )  # fmt: skip
    for index, got in enumerate(_watched(loader, start, timeout), start):
        if isinstance(got, _Bad):
            raise UserError(got.problems)
        step, bad = got
        step_and_skipped(index, bad)
        yield step


def _watched(loader: Iterable[T], start: int, timeout: float) -> Iterator[T]:
    """What the loader yields; what it raises where a worker was lost, as a `MachineError`."""
    index, before = start, set(active_children())
    steps = iter(loader)  # held here: it waits seconds for its workers when it goes, so they go first
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
        # left early, one may be at a slow row, and it leaves signals to us: nobody is to wait for it
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
    """Ends workers that are waited for in vain. The loader's own timeout would also have to pass
    before it looks whether a worker is still alive; without one it looks every five seconds."""

    def __init__(self, timeout: float, workers: Sequence[BaseProcess]) -> None:
        self.timeout, self.workers = timeout, workers
        self.until = math.inf
        self.hung, self._done = threading.Event(), threading.Event()
        self._thread = threading.Thread(target=self._look, daemon=True)

    def __enter__(self) -> _WorkerTimeout:
        if self.workers:
            self._thread.start()
        return self

    def __exit__(self, *caught: object) -> None:
        self._done.set()

    @contextmanager
    def waiting(self) -> Iterator[None]:
        """The time that counts."""
        self.until = time.monotonic() + self.timeout
        try:
            yield
        finally:
            self.until = math.inf

    def _look(self) -> None:
        while not self._done.wait(min(1.0, self.timeout / 4)):
            if time.monotonic() > self.until:
                self.hung.set()
                for worker in self.workers:
                    worker.kill()
                return
