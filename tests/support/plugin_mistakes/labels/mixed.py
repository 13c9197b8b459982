"""Gives a whole number to some samples and a fraction to others."""

from dataclasses import dataclass

from lmmkit.api import AttnMass, Loss, Select, hookimpl

WHERE = "mistake.labels"
CODE = "plugin/label"


@dataclass(frozen=True, kw_only=True)
class Mistake(Loss):
    @property
    def needs(self):
        return (AttnMass(q=Select(supervised=True)),)

    def labels(self, sample, dims):
        return {"weight": 1 if len(sample.key) % 2 else 0.5}

    def value(self, ctx):
        view_Q = ctx.batch.gathers[self.needs[0]].view_Q
        return (ctx.label("weight").float()[view_Q] * (1 - ctx[self.needs[0]])).sum()


@hookimpl
def lmmkit_components():
    return {"mistake": Mistake}
