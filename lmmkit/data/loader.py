"""Steps in order, from data workers; the state of the data is one integer.

A resumed run builds a new loader that starts at its step: nothing of a loader is ever saved, so
worker counts may change between runs.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import TypeVar

import torch
from torch.utils.data import Dataset
from torchdata.stateful_dataloader import StatefulDataLoader

from lmmkit.batch import Step
from lmmkit.data.bad_rows import BadRow
from lmmkit.data.pipeline import Pipeline
from lmmkit.errors import MachineError, Problem, UserError

TIMEOUT = 300.0  # seconds a worker may take for one step
Sifted = tuple[tuple[str, BadRow], ...]  # rows that were passed over, by source
T = TypeVar("T")


@dataclass(frozen=True)
class _Bad:
    """A step that bad data spoilt; travels from the worker as a value, to be raised at home."""

    problems: tuple[Problem, ...]


class _Steps(Dataset):
    def __init__(self, pipeline: Pipeline):
        self.pipeline = pipeline

    def __getitem__(self, index: int) -> tuple[Step, Sifted] | _Bad:
        try:
            return self.pipeline.sifted(index)
        except UserError as error:
            return _Bad(error.problems)


def load_steps(
    pipeline: Pipeline, start: int, stop: int, *, workers: int, worker_init: Callable[[int], None],
    sifted: Callable[[int, Sifted], None] = lambda index, bad: None, timeout: float = TIMEOUT,
) -> Iterator[Step]:  # fmt: skip
    """Steps `start` to `stop - 1`; `sifted` is told which rows of each were passed over.

    Raises `UserError` when a row or image turns out bad, `MachineError` when a worker dies, or is
    silent for `timeout` seconds.
    """
    with warnings.catch_warnings():  # torchdata 0.11 calls what torch has made a deprecated no-op
        warnings.filterwarnings("ignore", message="'set_vital' is deprecated")
        loader = StatefulDataLoader(
            _Steps(pipeline), batch_size=None, sampler=range(start, stop), num_workers=workers,
            timeout=timeout if workers else 0, worker_init_fn=worker_init,
            multiprocessing_context="forkserver" if workers else None,
            generator=torch.Generator(),  # it draws a seed as it opens: not from what dropout draws from
        )  # fmt: skip
    for index, got in enumerate(_watched(loader, start, timeout), start):
        if isinstance(got, _Bad):
            raise UserError(got.problems)
        step, bad = got
        sifted(index, bad)
        yield step


def _watched(loader: Iterable[T], start: int, timeout: float) -> Iterator[T]:
    """What the loader yields; what it raises where a worker was lost, as a `MachineError`."""
    index = start
    try:
        for got in loader:
            yield got
            index += 1
    except (RuntimeError, EOFError, ConnectionError) as error:
        text = str(error)
        if isinstance(error, RuntimeError) and "DataLoader" not in text:
            raise
        where = f"data workers, at or before step {index + 1} of the stage"
        if "timed out" in text:
            got, want = f"no answer for {timeout:g} s", "a step from a data worker"
            mend = "See whether the file system hangs; resume, with `speed.workers` lowered if it was slow."
            raise MachineError(Problem("data/worker-hung", where, got, want, mend)) from error
        got = f"a worker that died: {text.strip().splitlines()[0][:200] if text.strip() else type(error).__name__}"
        mend = "Probably memory: resume with `speed.workers` or `speed.image_cache_mb` lowered."
        raise MachineError(Problem("data/worker-died", where, got, "a step from a worker", mend)) from error
