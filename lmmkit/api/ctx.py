"""What a term gets for a micro-batch, `Ctx`, and the metrics that it returns."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import torch
from torch import Tensor, nn

from lmmkit.api import pairing
from lmmkit.api.batch import Batch, Ragged
from lmmkit.api.model_info import Dims
from lmmkit.api.needs import LogitsAt, LogProb, LogSumExp, Need
from lmmkit.api.pairing import Reduce


class Metric(NamedTuple):
    """Holds a figure to log next to the loss: its sum over the counted items, and the sum at chance level."""

    total: Tensor
    chance: Tensor | float


class Moment(NamedTuple):
    """Says when a term is computed: the updates of the stage before, and the share of the stage done."""

    step: int
    progress: float


EVALUATION = Moment(step=0, progress=1.0)


@dataclass(frozen=True)
class Ctx:
    """Holds the inputs of a term for one micro-batch: the batch, exactly its declared needs, its module.

    `step` is the number of updates of the stage before this one, and `progress` their share of the stage, for
    which its weights are taken. In evaluation they are 0 and 1.0. `seed` is the recipe's.
    """

    name: str
    batch: Batch
    taps: Mapping[Need, Tensor]
    module: nn.Module | None
    step: int = EVALUATION.step
    progress: float = EVALUATION.progress
    dims: Dims | None = None
    seed: int = 0

    def __getitem__(self, need: Need) -> Tensor:
        """Returns the tensor of a declared need. Raises `KeyError` if the need is not declared."""
        if need not in self.taps:
            raise KeyError(f"plugin `{self.name}` reads {need}, which it does not declare in `needs`")
        return self.taps[need]

    @cached_property
    def rng(self) -> torch.Generator:
        """Returns a generator on the CPU, keyed by the seed, the instance, the step and the first sample of the
        micro-batch. So a resumed run draws the same numbers, and every evaluation too."""
        first = self.batch.views[0][1] if self.batch is not None and self.batch.views else ""
        key = hashlib.blake2b(repr((self.seed, self.name, self.step, first)).encode(), digest_size=7)
        return torch.Generator().manual_seed(int.from_bytes(key.digest(), "big"))

    def targets(self, need: LogProb | LogSumExp | LogitsAt) -> Tensor:
        """Returns the tokens whose log-probability `need` is, or whose rows' log-sum-exp: [Q]."""
        self[need]
        found = self.batch.gathers[need].target_Q
        if found is None:
            raise KeyError(f"plugin `{self.name}` asks for the targets of {need}, which has none")
        return found

    def by_view(self, need: Need, reduce: Reduce = "sum") -> tuple[Tensor, Tensor]:
        """Returns the sum or mean of a need over each view that has values, and the numbers of these views."""
        return pairing.by_view(self.batch, need, self[need], reduce)

    def by_sample(self, *needs: Need, reduce: Reduce = "sum") -> tuple[Tensor, ...]:
        """Returns the sum or mean of each need over each sample, row for row: of those samples of the batch
        that have values of all the needs."""
        return pairing.by_sample(self.batch, needs, [self[need] for need in needs], reduce)

    def beside(self, need: Need, *, like: Need, fill: float = 0.0) -> Tensor:
        """Returns for each value of `like` that of `need` at the same place in the same sample, else `fill`.

        The place is the number of the value in its view.
        """
        return pairing.beside(self.batch, need, like, self[need], fill)

    def label(self, key: str) -> Tensor:
        """Returns the labels `key` in view order, [views, ...]: a task's of its own views, a loss's of all views.

        Raises `KeyError` if the views do not have this label, and `ValueError` if its values have unlike sizes:
        `ragged` returns those.
        """
        found = self._labels(key)
        if isinstance(found, Tensor):
            return found
        raise ValueError(f"label `{key}` has values of unlike sizes: read it by `ctx.ragged`")

    def ragged(self, key: str) -> Ragged:
        """Returns the labels `key` one after the other, whether or not their first sizes are equal.

        Raises `KeyError` if the views do not have this label, and `ValueError` if it is one number for each view.
        """
        found = self._labels(key)
        if isinstance(found, Ragged):
            return found
        if found.ndim == 1 and len(found):
            raise ValueError(f"label `{key}` has one value for each view: read it by `ctx.label`")
        flat = found.flatten(0, 1) if found.ndim > 1 else found
        each = len(flat) // max(len(found), 1)
        return Ragged(flat, torch.arange(len(flat), device=flat.device) // max(each, 1))

    def _labels(self, key: str) -> Tensor | Ragged:
        found = self.batch.labels.get(f"{self.name}/{key}")
        if found is not None:
            return found
        if any(name.startswith(f"{self.name}/") for name in self.batch.labels) or self.batch.views_of(
            self.name
        ):
            raise KeyError(f"plugin `{self.name}` reads label `{key}`, which its views do not have")
        return self.batch.target_S.new_empty(0)
