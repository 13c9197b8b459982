"""The closed vocabulary of what a term may ask of the model.

A need is a frozen, hashable description. The plan collects the needs of all active terms; the
pipeline resolves each to row numbers; the model computes exactly these and nothing else. Adding
a need is a change of the core, with a plain twin and a test.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import accumulate
from typing import Literal

import numpy as np

from lmmkit.api.layout import Kind, Layout, Span, SpanRole


@dataclass(frozen=True, kw_only=True)
class Sel:
    """Selects rows of one view: those of spans that match every given field.

    `view` is "main" or a task's instance name. `learn=True` keeps supervised rows only. `shift`
    of -1 takes, instead of each row, its predecessor on the view's path (the row that predicts it).
    """

    view: str = "main"
    kind: Kind | None = None
    role: SpanRole | None = None
    mark: str | None = None
    learn: bool | None = None
    shift: Literal[0, -1] = 0

    def takes(self, span: Span) -> bool:
        """Whether this span's rows are selected."""
        return (
            (self.kind is None or span.kind == self.kind)
            and (self.role is None or span.role == self.role)
            and (self.mark is None or span.mark == self.mark)
            and (self.learn is None or span.learn == self.learn)
        )

    def places(self, layout: Layout) -> np.ndarray:
        """Positions in the view, in order, that are selected; `shift` applied. int64"""
        ends = list(accumulate(span.n for span in layout))
        taken = [
            np.arange(end - span.n, end) for end, span in zip(ends, layout, strict=True) if self.takes(span)
        ]
        places = np.concatenate([*taken, np.empty(0, np.int64)]) + self.shift
        return places[places >= 0]


@dataclass(frozen=True)
class HiddenAt:
    """[Q, D]: hidden states after the final norm at the selected rows, in (view, row) order."""

    at: Sel


@dataclass(frozen=True)
class HiddenMean:
    """[Q, D]: the mean of those states over the selected rows, one row a view that has any."""

    over: Sel


@dataclass(frozen=True, kw_only=True)
class AttnMass:
    """[Q]: the attention that each query row puts on all selected keys it sees, in [0, 1].

    Float32, mean over heads and over `layers`: "all", or layer numbers from 0.
    """

    q: Sel
    k: Sel = Sel(kind="image")
    layers: Literal["all"] | tuple[int, ...] = "all"


Need = HiddenAt | HiddenMean | AttnMass


def selector(need: Need) -> Sel:
    """The selector whose rows a need reads (the queries of a mass)."""
    match need:
        case HiddenAt(at=sel) | HiddenMean(over=sel) | AttnMass(q=sel):
            return sel
