"""Image-text matching (ALBEF, arXiv 2107.07651): does this text belong to this image, or to another sample's.

Each sample is shown with its own image and with that of another sample of its source. A learned token at the end
reads the view, and a linear layer separates the two. Simplified: the other image is drawn at random, where the
paper takes one that the model finds similar.
"""

import math
from dataclasses import dataclass, replace
from typing import ClassVar

import numpy as np
import torch.nn.functional as F
from torch import Tensor, nn

from lmmkit.api import (
    AuxTask,
    Ctx,
    Dims,
    HiddenAt,
    Insert,
    LearnedTokens,
    Metric,
    Sample,
    Select,
    TokenStrategy,
    View,
    hookimpl,
)  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class MatchToken(TokenStrategy):
    """Inserts the token `match` at the end of the views in which `negative_image` reads it."""

    provides: ClassVar[tuple[str, ...]] = ("match",)

    def edit(self, view: View) -> list[Insert]:
        return [Insert("end", "match")]

    def modules(self, dims: Dims) -> LearnedTokens:
        return LearnedTokens(1, dims.width)


@dataclass(frozen=True, kw_only=True)
class NegativeImage(AuxTask):
    """Tells whether the image of a view is that of its text: the cross entropy of two classes, the mean over views.

    tries: the number of other samples among which the first with another image is taken.
    """

    tries: int = 8
    others: ClassVar = "source"

    @property
    def needs(self) -> tuple[HiddenAt]:
        return (HiddenAt(Select(view=self.name, token_name="match")),)

    def check(self, dims: Dims) -> str:
        return "" if self.tries > 0 else f"tries: {self.tries}, which is not above 0"

    def modules(self, dims: Dims) -> nn.Linear:
        return nn.Linear(dims.width, 1)

    def views(self, sample: Sample, rng: np.random.Generator, others) -> list[View]:
        if not sample.images:
            return []
        n, own = len(sample.images), set(sample.images)
        for i in range(1, self.tries + 1):
            other = others(i)[-1]
            if len(other.images) == n and own.isdisjoint(other.images):
                swapped = replace(sample, images=other.images)
                return [View(sample=s, labels={"match": m}) for s, m in ((sample, 1.0), (swapped, 0.0))]
        return []

    def value(self, ctx: Ctx) -> Tensor:
        return F.binary_cross_entropy_with_logits(self._logits(ctx), ctx.label("match"), reduction="sum")

    def chance(self, dims: Dims) -> float:
        return math.log(2)

    def metrics(self, ctx: Ctx) -> dict[str, Metric]:
        right = (self._logits(ctx) > 0) == (ctx.label("match") > 0.5)
        return {"accuracy": Metric(right.float().sum(), len(right) / 2)}

    def _logits(self, ctx: Ctx) -> Tensor:
        assert ctx.module is not None, "`modules` builds it"
        return ctx.module(ctx[self.needs[0]]).float()[:, 0]


@hookimpl
def lmmkit_components():
    return {"match_token": MatchToken, "negative_image": NegativeImage}
