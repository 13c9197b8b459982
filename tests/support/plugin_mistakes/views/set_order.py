"""Joins a set of words, whose order changes with each process."""

from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import nn

from lmmkit.api import AuxTask, HiddenMean, Select, View, hookimpl

WHERE = "mistake.views"
CODE = "plugin/not-pure"
SECOND = "process"


@dataclass(frozen=True)
class Turned:
    quarter: int

    def __call__(self, pixels_CXY):
        return torch.rot90(pixels_CXY, self.quarter, (1, 2))


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
        images = tuple(replace(image, edit=Turned(k)) for image in sample.images)
        words = set(sample.turns[0].text.split())
        turns = (replace(sample.turns[0], text=" ".join(words), places=()), *sample.turns[1:])
        return [View(sample=replace(sample, images=images, turns=turns), labels={"quarter": k})]

    def value(self, ctx):
        logits = ctx.module(ctx[self.needs[0]]).float()
        return F.cross_entropy(logits, ctx.label("quarter").long(), reduction="sum")


@hookimpl
def lmmkit_components():
    return {"mistake": Mistake}
