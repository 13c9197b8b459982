"""Gives the chance of one item, where that of all items belongs."""

from dataclasses import dataclass

from lmmkit.api import AttnMass, Loss, Metric, Select, hookimpl

WHERE = "mistake.metrics"
CODE = "plugin/not-additive"


@dataclass(frozen=True, kw_only=True)
class Mistake(Loss):
    @property
    def needs(self):
        return (AttnMass(q=Select(supervised=True)),)

    def value(self, ctx):
        return (1 - ctx[self.needs[0]]).sum()

    def metrics(self, ctx):
        return {"mass": Metric(ctx[self.needs[0]].sum(), 0.5)}


@hookimpl
def lmmkit_components():
    return {"mistake": Mistake}
