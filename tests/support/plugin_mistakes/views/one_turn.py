"""Gives one turn, in place of a tuple of turns."""

from dataclasses import dataclass, replace

import torch.nn.functional as F
from torch import nn

from lmmkit.api import AuxTask, HiddenMean, Select, View, hookimpl

WHERE = "mistake.views"
CODE = "plugin/returned"


@dataclass(frozen=True, kw_only=True)
class Mistake(AuxTask):
    @property
    def needs(self):
        return (HiddenMean(Select(view=self.name, kind="image")),)

    def modules(self, dims):
        return nn.Linear(dims.width, 4)

    def views(self, sample, rng):
        if not sample.images:
            return []
        k = int(rng.integers(4))
        turns = sample.turns[0]
        return [View(sample=replace(sample, turns=turns), labels={"quarter": k})]

    def value(self, ctx):
        logits = ctx.module(ctx[self.needs[0]]).float()
        return F.cross_entropy(logits, ctx.label("quarter").long(), reduction="sum")


@hookimpl
def lmmkit_components():
    return {"mistake": Mistake}
