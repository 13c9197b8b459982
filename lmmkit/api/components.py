"""What a plugin may be: a token strategy, an auxiliary task or a loss.

A component is a frozen dataclass whose fields ARE its recipe settings; `name` is its instance
name, given by the core. It holds nothing else, so it pickles into data workers; parameters live
in the module that `modules` builds and are reached through `ctx.module`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import numpy as np
import torch
from pluggy import HookimplMarker
from torch import Tensor, nn

from lmmkit.api.batch import Batch
from lmmkit.api.layout import Insert
from lmmkit.api.model_info import Dims
from lmmkit.api.needs import Need
from lmmkit.api.plugin_files import bare, home
from lmmkit.api.sample import Sample, View

API = 1
hookimpl = HookimplMarker("lmmkit")


class Metric(NamedTuple):
    """A figure to log beside the loss: its sum over the counted items, and the sum chance gives."""

    total: Tensor
    chance: Tensor | float


@dataclass(frozen=True)
class Ctx:
    """What a term sees of one micro-batch: the batch, exactly its declared needs, its own module."""

    name: str
    batch: Batch
    taps: Mapping[Need, Tensor]
    module: nn.Module | None

    def __getitem__(self, need: Need) -> Tensor:
        """The tensor of a declared need; an undeclared one is a `KeyError` that says so."""
        if need not in self.taps:
            raise KeyError(f"plugin `{self.name}` reads {need}, which it does not declare in `needs`")
        return self.taps[need]

    def label(self, key: str) -> Tensor:
        """The labels `key` of this instance's views, in view order: [views]."""
        return self.batch.labels[f"{self.name}/{key}"]


@dataclass(frozen=True, kw_only=True)
class Component:
    """Settings of one plugin instance."""

    api: ClassVar[int] = API
    name: str

    def modules(self, dims: Dims) -> nn.Module | None:
        """The instance's parameters, built once for the whole run; each has `reset_parameters`."""
        return None

    def check(self, dims: Dims) -> str:
        """What of the settings does not fit this model ("key: got, which ..."); empty when all does."""
        return ""

    def __reduce_ex__(self, protocol):
        """A component of a local file brings its file along: a data worker cannot import it."""
        file = home(type(self))
        if file is None:
            return super().__reduce_ex__(protocol)
        # The settings come as state, after the file is loaded: they may hold objects of it.
        return bare, (*file, type(self).__qualname__), self.__getstate__()


@dataclass(frozen=True, kw_only=True)
class TokenStrategy(Component):
    """Puts learned tokens into layouts. Its module's `forward()` gives their rows, [n, D]."""

    provides: ClassVar[tuple[str, ...]] = ()

    def edit(self, view: View) -> Sequence[Insert]:
        """Where its tokens stand in this view. Must not depend on pixels or randomness."""
        raise NotImplementedError


@dataclass(frozen=True, kw_only=True)
class Term(Component):
    """Adds a term to the objective: a sum over counted items, from declared needs."""

    @property
    def needs(self) -> tuple[Need, ...]:
        """What `value` reads of the model."""
        return ()

    def count(self, batch: Batch) -> int:
        """Items of this micro-batch the term averages over; asked on the host, before the forward."""
        return len(batch.gathers[self.needs[0]])

    def value(self, ctx: Ctx) -> Tensor:
        """The SUM over those items, a float32 scalar. The core divides by the global count."""
        raise NotImplementedError

    def chance(self, dims: Dims) -> float | None:
        """What the averaged value would be at chance, where that is known beforehand."""
        return None

    def metrics(self, ctx: Ctx) -> Mapping[str, Metric]:
        """Further figures, on logging steps and in evaluation; never differentiated."""
        return {}

    def images(self, ctx: Ctx) -> Mapping[str, Tensor]:
        """Pictures for TensorBoard, preprocessed pixels [C, X, Y] by name."""
        return {}


@dataclass(frozen=True, kw_only=True)
class AuxTask(Term):
    """Derives further views from a sample and learns from them.

    With `text_loss` the term is the next-token loss on the views' supervised text and `value`
    is never called; `score` then judges generated text.
    """

    text_loss: ClassVar[bool] = False

    def views(self, sample: Sample, rng: np.random.Generator) -> Sequence[View]:
        """The task's views; `rng` is keyed by (seed, instance, sample, epoch)."""
        raise NotImplementedError

    def count(self, batch: Batch) -> int:
        return len(batch.views_of(self.name))

    def score(self, view: View, text: str) -> tuple[float, float]:
        """(score of the generated text in [0, 1], what guessing would score)."""
        raise NotImplementedError


@dataclass(frozen=True, kw_only=True)
class Loss(Term):
    """A term over the views that are there anyway."""


class LearnedTokens(nn.Module):
    """`n` learned rows of width D, drawn from N(0, std)."""

    def __init__(self, n: int, width: int, *, std: float = 0.02):
        super().__init__()
        self.weight = nn.Parameter(torch.empty(n, width))
        self.std = std

    def reset_parameters(self) -> None:
        """Draws the rows anew."""
        nn.init.normal_(self.weight, std=self.std)

    def forward(self) -> Tensor:
        """[n, D]"""
        return self.weight
