"""Which sample stands where: the same for any number of ranks and workers, and any place to stop."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, cast

import pytest

from lmmkit.data.loader import load_steps
from lmmkit.data.pipeline import Pipeline
from lmmkit.data.sampler import Sampler
from lmmkit.training.signals import ignore_in_worker

TOTAL, SAMPLES, STEPS = 103, 10, 11


class Rows(Pipeline):
    """Steps of row numbers, without any data."""

    def step_and_skipped(self, index: int) -> Any:
        return [list(self.order.at(k)) for k in self.positions(index)], ()


def rows(samples: int = SAMPLES) -> Rows:
    order = Sampler({"a": 37, "b": 11}, {"a": 0.8, "b": 0.3}, 5)
    return Rows(
        sources={}, order=order, views=cast(Any, None), packer=cast(Any, None), samples=samples, tokens=1, total=TOTAL
    )  # fmt: skip


WHOLE = [list(rows().order.at(k)) for k in range(TOTAL)]


@pytest.mark.parametrize("world", [1, 2, 3, 4, 8, 16])
@pytest.mark.parametrize("samples", [1, 7, 10])
def test_ranks_share_a_step_in_the_order_s_order(world, samples):
    seen, sizes = [], set()
    for index in range(-(-TOTAL // samples)):
        step = [replace(rows(samples), rank=rank, world=world).step(index) for rank in range(world)]
        seen += [row for share in step for row in share]
        sizes |= {max(map(len, step)) - min(map(len, step))}
    assert seen == WHOLE and max(sizes) <= 1


@pytest.mark.parametrize(
    "workers", [0, pytest.param(2, marks=pytest.mark.slow), pytest.param(3, marks=pytest.mark.slow)]
)
@pytest.mark.parametrize("world", [1, 2, 4, 8])
@pytest.mark.parametrize("stop", [1, 4, 7, 10])
def test_a_run_stopped_anywhere_goes_on_with_the_same_samples(world, workers, stop):
    """First by one rank without workers, then by others."""
    before = [
        row
        for step in load_steps(rows(), 0, stop, workers=0, worker_init=ignore_in_worker)
        for row in cast(Any, step)
    ]
    shares = [
        list(
            load_steps(
                replace(rows(), rank=rank, world=world),
                stop,
                STEPS,
                workers=workers,
                worker_init=ignore_in_worker,
            )
        )
        for rank in range(world)
    ]
    after = [row for step in zip(*shares, strict=True) for share in step for row in cast(Any, share)]
    assert before + after == WHOLE
