"""Forgets `return`."""

from dataclasses import dataclass

from lmmkit.api import AttnMass, Loss, Metric, Select, hookimpl

WHERE = "mistake.metrics"
CODE = "plugin/returned"


@dataclass(frozen=True, kw_only=True)
class Mistake(Loss):
    @property
    def needs(self):
        return (AttnMass(q=Select(supervised=True)),)

    def metrics(self, ctx):
        {"mass": Metric(ctx[self.needs[0]].sum(), 0.5)}

    def value(self, ctx):
        return (1 - ctx[self.needs[0]]).sum()


@hookimpl
def lmmkit_components():
    return {"mistake": Mistake}
