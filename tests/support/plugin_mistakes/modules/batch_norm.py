"""Normalises over the micro-batch, by a layer of its head."""

from dataclasses import dataclass

from torch import nn

from lmmkit.api import HiddenAt, Loss, Select, hookimpl

WHERE = "mistake.modules"
CODE = "plugin/not-additive"


@dataclass(frozen=True, kw_only=True)
class Mistake(Loss):
    @property
    def needs(self):
        return (HiddenAt(Select(supervised=True)),)

    def modules(self, dims):
        return nn.Sequential(nn.BatchNorm1d(dims.width), nn.Linear(dims.width, 2))

    def value(self, ctx):
        return ctx.module(ctx[self.needs[0]]).pow(2).sum()


@hookimpl
def lmmkit_components():
    return {"mistake": Mistake}
