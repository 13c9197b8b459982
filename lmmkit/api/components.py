"""The base classes of plugins: token strategy, auxiliary task and loss.

A component is a frozen dataclass whose fields ARE its recipe settings; `name` is its instance name,
which the core sets. It contains nothing else, so it can be pickled for data workers. Parameters
belong to the module that `modules` builds; a term reaches them through `ctx.module`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

import numpy as np
import torch
from pluggy import HookimplMarker
from torch import Tensor, nn

from lmmkit.api.batch import Batch
from lmmkit.api.ctx import Ctx, Metric
from lmmkit.api.layout import Insert
from lmmkit.api.model_info import Dims
from lmmkit.api.needs import LogitsAt, Need, Select
from lmmkit.api.plugin_files import empty_instance, source_file
from lmmkit.api.puzzle import Puzzle
from lmmkit.api.sample import Label, Sample, View

API = 2
CHANGES = {  # by version: what a plugin for the version before must change
    2: '`View(supervised=True)` is `View(supervision="train")`',
}
OLD_NAMES = {  # what Python says when a plugin uses a name of an older version, and that which changed it
    "View.__init__() got an unexpected keyword argument 'supervised'": 2,
    "'View' object has no attribute 'supervised'": 2,
}
hookimpl = HookimplMarker("lmmkit")


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
    """Inserts learned tokens into layouts. The `forward()` of its module returns their embeddings, [n, D].

    With `unread` no term has to read the tokens (registers): a stage that names the instance in `tokens` has them.
    """

    provides: ClassVar[tuple[str, ...]] = ()
    unread: ClassVar[bool] = False

    def edit(self, view: View) -> Sequence[Insert]:
        """Returns where to insert its tokens in this view. Must not depend on pixels, randomness or the key of the
        sample."""
        raise NotImplementedError


@dataclass(frozen=True, kw_only=True)
class Reader(Component):
    """Reads declared needs from the model."""

    @property
    def needs(self) -> tuple[Need, ...]:
        """Returns what it reads from the model."""
        return ()


@dataclass(frozen=True, kw_only=True)
class TokenWeight(Reader):
    """Weights the rows of the next-token loss: `losses: {next_token: {weight: 1.0, by: [its instance]}}`.

    It has `spans`, `weigh`, or both: then the weights of a row are multiplied. The sum of the weighted losses is
    divided by the number of rows, so weights of 1 are the plain loss.
    """

    def labels(self, sample: Sample, dims: Dims) -> Mapping[str, Label]:
        """Returns what it knows of a sample, by key, as a `Loss` does."""
        return {}

    def spans(self, sample: Sample, text: str) -> Sequence[tuple[int, int, float]]:
        """Returns weights of characters of `text`, an answer of the sample: (first, one after the last, weight).

        The end of the answer is one character more. A token has the weight of each range that has one of its
        characters, leading spaces aside, and 1 without any. A weight is finite, and 0 or more.
        """
        return ()

    def weigh(self, ctx: Ctx) -> Tensor:
        """Returns the weight of each row of `next_token`, 0 or more, in float32, without a gradient: [S].

        The rows are in the order of `ctx[LogProb(Select())]`, and as many as `ctx.batch.count["next_token"]`. It
        is not called for a micro-batch without any. No weight may depend on another sample.
        """
        raise NotImplementedError


@dataclass(frozen=True, kw_only=True)
class Term(Reader):
    """Adds a term to the objective: a sum over counted items, from declared needs.

    With `additive` False the value belongs to a micro-batch, whose items may know each other: the term of a step is
    the MEAN of what `value` returns over all micro-batches with items, of all ranks. So how a step is cut changes it.
    """

    additive: ClassVar[bool] = True

    def count(self, batch: Batch) -> int:
        """Returns the number of items that the term averages over; called on the host, before the forward.

        Unless overridden: the number of values of the first need, so the views of a `HiddenMean`.
        """
        return batch.value_count(self.needs[0])

    def value(self, ctx: Ctx) -> Tensor:
        """Returns the SUM over those items, a float32 scalar. The core divides by the global count.

        It is not called for a micro-batch with a count of 0. With `additive` False: the value of the micro-batch.
        """
        raise NotImplementedError

    def chance(self, dims: Dims) -> float | None:
        """Returns the averaged value at chance level, or None if it is not known in advance."""
        return None

    def metrics(self, ctx: Ctx) -> Mapping[str, Metric]:
        """Returns further metrics, on logging steps and in evaluation; never differentiated."""
        return {}

    def images(self, ctx: Ctx) -> Mapping[str, Tensor]:
        """Returns images for TensorBoard: preprocessed pixels [C, X, Y] by name. Not called without items."""
        return {}


OtherSamples = Callable[[int], list[Sample]]
"""`others(n)`: n other samples, of the source or of the step of a sample."""
OthersKind = Literal["none", "source", "step"]


@dataclass(frozen=True, kw_only=True)
class ViewMaker(Component):
    """Derives further views from a sample. `roles` lists the roles that they may have.

    With `others` "source", `views` gets a third argument, `others`: `others(n)` returns n other samples of the
    same source, none twice, keyed like `rng`; `others(2)` begins `others(5)`. With "step" they are samples of the
    same optimizer step, on all ranks.
    """

    roles: ClassVar[tuple[str, ...]] = ("",)
    others: ClassVar[OthersKind] = "none"

    def views(self, sample: Sample, rng: np.random.Generator) -> Sequence[View]:
        """Returns the views; `rng` is keyed by (seed, instance, sample, epoch)."""
        raise NotImplementedError


@dataclass(frozen=True, kw_only=True)
class ExtraView(ViewMaker):
    """Derives further views without a term. They are made in a stage in which an active term reads them."""


@dataclass(frozen=True, kw_only=True)
class AuxTask(ViewMaker, Term):
    """Derives further views from a sample and trains on them.

    With `text_loss` the term is the next-token loss on the supervised text of the views and `value`
    is never called; `score` then scores generated text.
    """

    text_loss: ClassVar[bool] = False

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

    def labels(self, sample: Sample, dims: Dims) -> Mapping[str, Label]:
        """Returns what the term knows of a sample, by key: numbers, or arrays of numbers. `ctx.label` has a row
        for each view of the micro-batch: that of its sample."""
        return {}


@dataclass(frozen=True, kw_only=True)
class RowLoss(Loss):
    """Computes a term from all logits of each row that predicts a token which `at` selects, a chunk of rows at a
    time. An item is such a row.

    With a setting `teacher`, the name of a teacher of the recipe, `rows` gets a third argument, `teacher_CV`: the
    logits of that model at the same rows, without a gradient. Each label that `labels` gives is passed by its key, with
    a value for each row: that of the sample, or of a list with one value for each of the sample's rows, its own.
    """

    at: ClassVar[Select] = Select()

    @property
    def needs(self) -> tuple[LogitsAt]:
        """Returns the rows of `at`."""
        return (LogitsAt(self.at, getattr(self, "teacher", "")),)

    def rows(self, logits_CV: Tensor, target_C: Tensor) -> Tensor:
        """Returns the loss of each of these rows, [C] in float32, from its logits and its target.

        It is called twice for each chunk, the second time in the backward pass. No row may depend on another one.
        """
        raise NotImplementedError


@dataclass(frozen=True, kw_only=True)
class StepTerm(Loss):
    """Computes a term over all items of a step together, of all micro-batches and ranks, as a contrastive loss.

    An item is a row of `embed`. The step is run twice: once without a graph to collect the rows, and once to
    differentiate. So the result depends neither on how a step is cut nor on the number of ranks.
    """

    def embed(self, ctx: Ctx) -> Tensor:
        """Returns one row for each counted item of the micro-batch, [n, ...] in float32.

        It is not called for a micro-batch with a count of 0.
        """
        raise NotImplementedError

    def step_value(self, items: Tensor, module: nn.Module | None) -> Tensor:
        """Returns the SUM over all items of the step, a float32 scalar, from the rows of `embed`, [N, ...].

        It may read parameters of the instance's module. Every rank computes it. The order of the rows is that
        of the ranks, then of their micro-batches.
        """
        raise NotImplementedError


@dataclass(frozen=True, kw_only=True)
class ImageReducer(Component):
    """Gives an image fewer rows than the encoder has tokens. `model.connector.reduce` names the instance.

    `connects`: it is the connector too, so `reduce` gives the decoder's width, and `model.connector.kind` is `none`.
    """

    connects: ClassVar[bool] = False

    def tokens(self, dims: Dims) -> int:
        """Returns the number of rows of an image; the same for all images, because layouts are made before
        pixels are read."""
        raise NotImplementedError

    def patches(self, dims: Dims) -> Sequence[Sequence[int]] | None:
        """Returns for each row the numbers of the encoder's tokens that it is made of, equally many for each row;
        None if they depend on the image."""
        return None

    def reduce(
        self, features_INE: Tensor, connect: Callable[[Tensor], Tensor], module: nn.Module | None
    ) -> Tensor:
        """Returns the rows of each image, [I, rows, D], from the encoder's output.

        `connect` is the connector: it maps vectors of width E to width D; with `connects` it changes nothing.
        `module` is what `modules` has built.
        """
        raise NotImplementedError


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
