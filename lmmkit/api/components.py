"""The base classes of plugins: token strategy, auxiliary task and loss.

A component is a frozen dataclass whose fields ARE its recipe settings; `name` is its instance name,
which the core sets. It contains nothing else, so it can be pickled for data workers. Parameters
belong to the module that `modules` builds; a term reaches them through `ctx.module`.
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
from lmmkit.api.plugin_files import empty_instance, source_file
from lmmkit.api.puzzle import Puzzle
from lmmkit.api.sample import Sample, View

API = 1
hookimpl = HookimplMarker("lmmkit")


class Metric(NamedTuple):
    """Holds a figure to log next to the loss: its sum over the counted items, and the sum at chance level."""

    total: Tensor
    chance: Tensor | float


@dataclass(frozen=True)
class Ctx:
    """Holds the inputs of a term for one micro-batch: the batch, exactly its declared needs, its module."""

    name: str
    batch: Batch
    taps: Mapping[Need, Tensor]
    module: nn.Module | None

    def __getitem__(self, need: Need) -> Tensor:
        """Returns the tensor of a declared need. Raises `KeyError` if the need is not declared."""
        if need not in self.taps:
            raise KeyError(f"plugin `{self.name}` reads {need}, which it does not declare in `needs`")
        return self.taps[need]

    def label(self, key: str) -> Tensor:
        """Returns the labels `key` of this instance's views, in view order: [views].

        Raises `KeyError` if its views do not have this label.
        """
        found = self.batch.labels.get(f"{self.name}/{key}")
        if found is not None:
            return found
        if self.batch.views_of(self.name):
            raise KeyError(f"plugin `{self.name}` reads label `{key}`, which its views do not have")
        return self.batch.target_S.new_empty(0)


@dataclass(frozen=True, kw_only=True)
class Component:
    """Holds the settings of one plugin instance."""

    api: ClassVar[int] = API
    name: str

    def modules(self, dims: Dims) -> nn.Module | None:
        """Returns the module of the instance, built once per run.

        Each module in it with parameters or buffers has `reset_parameters`, which fills them. A parameter
        with `requires_grad` off stays frozen in all stages.
        """
        return None

    def check(self, dims: Dims) -> str:
        """Returns which settings do not fit this model ("key: got, which ..."); empty if all do."""
        return ""

    def __reduce_ex__(self, protocol):
        """Pickles a component from a local file together with the path and hash of the file, so that a data
        worker can load it."""
        file = source_file(type(self))
        if file is None:
            return super().__reduce_ex__(protocol)
        # The settings are passed as state, after the file is loaded: they may contain objects from it.
        return empty_instance, (*file, type(self).__qualname__), self.__getstate__()


@dataclass(frozen=True, kw_only=True)
class TokenStrategy(Component):
    """Inserts learned tokens into layouts. The `forward()` of its module returns their embeddings, [n, D]."""

    provides: ClassVar[tuple[str, ...]] = ()

    def edit(self, view: View) -> Sequence[Insert]:
        """Returns where to insert its tokens in this view. Must not depend on pixels or randomness."""
        raise NotImplementedError


@dataclass(frozen=True, kw_only=True)
class Term(Component):
    """Adds a term to the objective: a sum over counted items, from declared needs."""

    @property
    def needs(self) -> tuple[Need, ...]:
        """Returns what `value` reads from the model."""
        return ()

    def count(self, batch: Batch) -> int:
        """Returns the number of items that the term averages over; called on the host, before the forward.

        Unless overridden: the number of values of the first need, so the views of a `HiddenMean`.
        """
        return batch.value_count(self.needs[0])

    def value(self, ctx: Ctx) -> Tensor:
        """Returns the SUM over those items, a float32 scalar. The core divides by the global count.

        It is not called for a micro-batch with a count of 0.
        """
        raise NotImplementedError

    def chance(self, dims: Dims) -> float | None:
        """Returns the averaged value at chance level, or None if it is not known in advance."""
        return None

    def metrics(self, ctx: Ctx) -> Mapping[str, Metric]:
        """Returns further metrics, on logging steps and in evaluation; never differentiated."""
        return {}

    def images(self, ctx: Ctx) -> Mapping[str, Tensor]:
        """Returns images for TensorBoard: preprocessed pixels [C, X, Y] by name."""
        return {}


@dataclass(frozen=True, kw_only=True)
class AuxTask(Term):
    """Derives further views from a sample and trains on them.

    With `text_loss` the term is the next-token loss on the supervised text of the views and `value`
    is never called; `score` then scores generated text. `roles` lists the roles that its views may have.
    """

    text_loss: ClassVar[bool] = False
    roles: ClassVar[tuple[str, ...]] = ("",)

    def views(self, sample: Sample, rng: np.random.Generator) -> Sequence[View]:
        """Returns the views of the task; `rng` is keyed by (seed, instance, sample, epoch)."""
        raise NotImplementedError

    def count(self, batch: Batch) -> int:
        return len(batch.views_of(self.name))

    def score(self, view: View, text: str) -> tuple[float, float]:
        """Returns (score of the generated text in [0, 1], expected score of guessing)."""
        raise NotImplementedError

    def puzzles(self, ctx: Ctx) -> Sequence[Puzzle]:
        """Returns one puzzle for each view of the task, in view order; called in evaluation. Empty if the task shuffles
        nothing, or reads the order from text."""
        return ()

    def text_puzzle(self, view: View, text: str) -> Puzzle | None:
        """Returns the puzzle of a view and the generated text; None if the task shuffles nothing."""
        return None


@dataclass(frozen=True, kw_only=True)
class Loss(Term):
    """Computes a term on the existing views, without adding any."""


class LearnedTokens(nn.Module):
    """Holds `n` learned tokens of width D, drawn from N(0, std^2)."""

    def __init__(self, n: int, width: int, *, std: float = 0.02):
        super().__init__()
        self.weight = nn.Parameter(torch.empty(n, width))
        self.std = std

    def reset_parameters(self) -> None:
        """Draws new values for the tokens."""
        nn.init.normal_(self.weight, std=self.std)

    def forward(self) -> Tensor:
        """Returns the embeddings, [n, D]."""
        return self.weight
