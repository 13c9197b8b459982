"""Steps in order, from data workers; the state of the data is one integer.

A resumed run builds a new loader that starts at its step: nothing of a loader is ever saved, so
worker counts may change between runs.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from multiprocessing import active_children

import torch
from torch.utils.data import Dataset
from torchdata.stateful_dataloader import StatefulDataLoader

from lmmkit.batch import Step
from lmmkit.data.pipeline import Pipeline
from lmmkit.errors import Problem, UserError

TIMEOUT = 300  # seconds a worker may take for one step


@dataclass(frozen=True)
class _Bad:
    """A step that bad data spoilt; travels from the worker as a value, to be raised at home."""

    problems: tuple[Problem, ...]


class _Steps(Dataset):
    def __init__(self, pipeline: Pipeline):
        self.pipeline = pipeline

    def __getitem__(self, index: int) -> Step | _Bad:
        try:
            return self.pipeline.step(index)
        except UserError as error:
            return _Bad(error.problems)


def load_steps(
    pipeline: Pipeline, start: int, stop: int, *, workers: int, worker_init: Callable[[int], None]
) -> Iterator[Step]:
    """Steps `start` to `stop - 1`. Raises `UserError` when a row or image turns out bad."""
    with warnings.catch_warnings():  # torchdata 0.11 calls what torch has made a deprecated no-op
        warnings.filterwarnings("ignore", message="'set_vital' is deprecated")
        loader = StatefulDataLoader(
            _Steps(pipeline), batch_size=None, sampler=range(start, stop), num_workers=workers,
            timeout=TIMEOUT if workers else 0, worker_init_fn=worker_init,
            multiprocessing_context="forkserver" if workers else None,
            generator=torch.Generator(),  # it draws a seed as it opens: not from what dropout draws from
        )  # fmt: skip
    others = set(active_children())
    steps = iter(loader)  # held here: it waits seconds for its workers when it goes, so they go first
    try:
        for step in steps:
            if isinstance(step, _Bad):
                raise UserError(step.problems)
            yield step
    finally:
        # left early, one may be at a slow row, and it leaves signals to us: nobody is to wait for it
        for worker in set(active_children()) - others:
            worker.kill()
