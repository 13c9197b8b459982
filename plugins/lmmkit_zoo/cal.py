"""CAL (Xiao et al., arXiv 2405.17871): tokens count by how much the image helps to predict them.

A view without images scores the same answers. The weight of a token is the difference of its log-probabilities with
and without the image, within limits. Simplified: the paper takes the difference of logits, and averages it over
neighbouring tokens.
"""

from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from lmmkit.api import Ctx, Dims, ExtraView, LogProb, Sample, Select, TokenWeight, View, hookimpl


@dataclass(frozen=True, kw_only=True)
class Blind(ExtraView):
    """Makes a view of a sample without its images, in which the answers are only read."""

    def views(self, sample: Sample, rng: np.random.Generator) -> list[View]:
        if not sample.images:
            return []
        turns = tuple(replace(turn, images=0, places=()) for turn in sample.turns)
        return [View(sample=replace(sample, turns=turns, images=()), supervision="read")]


@dataclass(frozen=True, kw_only=True)
class Cal(TokenWeight):
    """Weights each row by what the image adds to the log-probability of its target.

    low, high: the limits of a weight. A row of a sample without images has weight 1.
    view: the instance of `blind`.
    """

    low: float = 1.0
    high: float = 5.0
    view: str = "blind"

    @property
    def needs(self) -> tuple[LogProb, LogProb]:
        return LogProb(Select()), LogProb(Select(view=self.view))

    def check(self, dims: Dims) -> str:
        return (
            "" if 0 <= self.low <= self.high else f"low: {self.low}, which is not from 0 to high: {self.high}"
        )

    def weigh(self, ctx: Ctx) -> Tensor:
        full, blind = self.needs
        without = ctx.beside(blind, like=full, fill=1.0)  # 1 is no log-probability
        weight = (ctx[full] - without).clamp(self.low, self.high)
        return torch.where(without > 0, torch.ones_like(weight), weight)


@hookimpl
def lmmkit_components():
    return {"blind": Blind, "cal": Cal}
