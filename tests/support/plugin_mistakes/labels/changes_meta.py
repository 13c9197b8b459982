"""Writes into the meta data of the sample."""

from dataclasses import dataclass

from lmmkit.api import AttnMass, Loss, Select, hookimpl

WHERE = "mistake.labels"
CODE = "plugin/in-place"


@dataclass(frozen=True, kw_only=True)
class Mistake(Loss):
    @property
    def needs(self):
        return (AttnMass(q=Select(supervised=True)),)

    def labels(self, sample, dims):
        sample.meta["weight"] = 1.0
        return {"weight": 1.0}

    def value(self, ctx):
        view_Q = ctx.batch.gathers[self.needs[0]].view_Q
        return (ctx.label("weight").float()[view_Q] * (1 - ctx[self.needs[0]])).sum()


@hookimpl
def lmmkit_components():
    return {"mistake": Mistake}
