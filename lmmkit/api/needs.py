"""The closed vocabulary of what a term may read from the model.

A need is a frozen, hashable description. The plan collects the needs of all active terms; the
pipeline resolves each to row numbers; the model computes exactly these and nothing else. A new need
is a change of the core, with a simple reference implementation and a test.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from itertools import accumulate
from typing import Literal

import numpy as np

from lmmkit.api.layout import Kind, Layout, Span, SpanRole
from lmmkit.api.sample import View


@dataclass(frozen=True, kw_only=True)
class Select:
    """Selects rows of one view: those of spans that match every given field.

    `view` is "main" or the instance name of a task, `view_role` one of the task's `roles`.
    `supervised=True` selects supervised rows only, `turn=-1` those of the last answer only.
    `shift=-1` selects, instead of each row, the previous row of the view (the row that predicts it).
    """

    view: str = "main"
    kind: Kind | None = None
    role: SpanRole | None = None
    token_name: str | None = None
    supervised: bool | None = None
    shift: Literal[0, -1] = 0
    view_role: str | None = None
    turn: Literal[-1] | None = None

    def takes(self, view: View) -> bool:
        """Returns whether rows of this view are selected."""
        return view.name == self.view and self.view_role in (None, view.role)

    def matches(self, span: Span) -> bool:
        """Returns whether the rows of this span are selected."""
        return (
            (self.kind is None or span.kind == self.kind)
            and (self.role is None or span.role == self.role)
            and (self.token_name is None or span.token_name == self.token_name)
            and (self.supervised is None or span.supervised == self.supervised)
            and (self.turn is None or span.turn == self.turn)
        )

    def positions(self, layout: Layout) -> np.ndarray:
        """Returns the selected positions in the view, in order, with `shift` applied; int64."""
        ends = list(accumulate(span.n for span in layout))
        taken = [
            np.arange(end - span.n, end) for end, span in zip(ends, layout, strict=True) if self.matches(span)
        ]
        positions = np.concatenate([*taken, np.empty(0, np.int64)]) + self.shift
        return positions[positions >= 0]


Layer = int | Literal["final"]


@dataclass(frozen=True)
class HiddenAt:
    """Asks for the hidden states at the selected rows, in (view, row) order: [Q, D].

    `layer`: "final", after the final norm; or a number of blocks, after which the states are read. 0: the rows
    that enter the first block.
    """

    at: Select
    layer: Layer = "final"


@dataclass(frozen=True)
class HiddenMean:
    """Asks for the mean of those states over the selected rows, for each view that has any: [Q, D]."""

    over: Select
    layer: Layer = "final"


@dataclass(frozen=True)
class VisionAt:
    """Asks for the vision features behind the selected image rows, in (view, row) order: [Q, width].

    `stage`: "encoder", what the encoder gives for the patch of a row; "projected", what the connector makes of
    it, which enters the decoder. `detach`: no gradient flows back.
    """

    at: Select
    stage: Literal["encoder", "projected"] = "encoder"
    detach: bool = True


@dataclass(frozen=True)
class TeacherAt:
    """Asks for the features that a frozen teacher has behind the selected image rows, in (view, row) order: [Q, width]
    float32.

    `teacher`: its name in the recipe. `fit`: what happens where its grid is not that of the model's encoder: "resize",
    the mean of a finer grid, between the places of a coarser one; "exact" refuses it.
    """

    teacher: str
    at: Select
    fit: Literal["resize", "exact"] = "resize"


@dataclass(frozen=True, kw_only=True)
class AttnMass:
    """Asks for the attention that each query row puts on the selected keys that it can attend to, in [0, 1]: [Q].

    Float32, mean over heads and over `layers`: "all", or layer numbers from 0.
    """

    q: Select
    k: Select = Select(kind="image")
    layers: Literal["all"] | tuple[int, ...] = "all"


@dataclass(frozen=True, kw_only=True)
class AttnTo:
    """Asks for the attention weights of each query row on the selected keys of its own view, in order: [Q, K].

    Float32, mean over `heads` and over `layers`: "all", or numbers from 0. K is the largest number of keys of a view;
    weights are 0 at keys that a query cannot attend to, and where a view has fewer keys.
    """

    q: Select
    k: Select = Select(kind="image")
    layers: Literal["all"] | tuple[int, ...] = "all"
    heads: Literal["all"] | tuple[int, ...] = "all"


@dataclass(frozen=True)
class LogProb:
    """Asks for the log-probability of each supervised token that `at` selects, given all before it: [Q] float32.

    `model`: of the trained model, or of the stage's `reference`.
    """

    at: Select
    model: Literal["policy", "reference"] = "policy"


@dataclass(frozen=True)
class LogSumExp:
    """Asks for log(sum(exp(logits))) of each row that predicts a supervised token that `at` selects: [Q] float32."""

    at: Select


@dataclass(frozen=True)
class LogitsAt:
    """Asks for the rows that predict the supervised tokens that `at` selects. A `RowLoss` has it: the logits of
    these rows are computed in chunks, with those of the teacher of this name if there is one."""

    at: Select
    teacher: str = ""


Need = HiddenAt | HiddenMean | VisionAt | TeacherAt | AttnMass | AttnTo | LogProb | LogSumExp | LogitsAt
ATTENTION = AttnMass | AttnTo
OfTargets = LogProb | LogSumExp | LogitsAt  # their items are targets, and are read where these are predicted


def reads_images(need: Need) -> bool:
    """Returns whether all rows that a need reads are image rows."""
    select = selector(need)
    return select.kind == "image" and select.shift == 0


def selector(need: Need) -> Select:
    """Returns the selector of the rows that a need reads (for a mass, the queries; for a probability, the
    targets)."""
    match need:
        case HiddenAt(at=select) | VisionAt(at=select) | TeacherAt(at=select) | HiddenMean(over=select):
            return select
        case AttnMass(q=select) | AttnTo(q=select):
            return select
        case LogProb(at=select) | LogSumExp(at=select) | LogitsAt(at=select):
            return replace(select, supervised=True)


def selectors(need: Need) -> tuple[Select, ...]:
    """Returns the selectors of all rows that a need names: of attention the queries, then the keys in their view."""
    if isinstance(need, ATTENTION):
        return need.q, replace(need.k, view=need.q.view)
    return (selector(need),)


def reads_reference(need: Need) -> bool:
    """Returns whether a need reads the stage's reference."""
    return isinstance(need, LogProb) and need.model == "reference"


def teachers_of(needs: Iterable[Need]) -> tuple[str, ...]:
    """Returns the names of the teachers whose features needs read, each once."""
    return tuple(dict.fromkeys(need.teacher for need in needs if isinstance(need, TeacherAt)))


def teacher_models_of(needs: Iterable[Need]) -> tuple[str, ...]:
    """Returns the names of the teachers whose logits needs read, each once. They are whole models."""
    named = (need.teacher for need in needs if isinstance(need, LogitsAt) and need.teacher)
    return tuple(dict.fromkeys(named))


def positions_of(need: Need, layout: Layout) -> np.ndarray:
    """Returns the positions in a view that the selector of a need selects. Nothing predicts position 0, so it is
    no target."""
    positions = selector(need).positions(layout)
    return positions[positions > 0] if isinstance(need, OfTargets) else positions


def selects_rows(need: Need, layout: Layout) -> bool:
    """Returns whether a need has any item in a view: of attention, a query that comes after a key."""
    positions = positions_of(need, layout)
    if isinstance(need, ATTENTION):
        keys = need.k.positions(layout)
        return bool(len(positions) and len(keys) and keys[0] <= positions[-1])
    return bool(len(positions))
