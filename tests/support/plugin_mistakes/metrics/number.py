"""Returns a number instead of a `Metric`."""

from dataclasses import dataclass

from lmmkit.api import AttnMass, Loss, Select, hookimpl

WHERE = "mistake.metrics"
CODE = "plugin/returned"


@dataclass(frozen=True, kw_only=True)
class Mistake(Loss):
    @property
    def needs(self):
        return (AttnMass(q=Select(supervised=True)),)

    def metrics(self, ctx):
        return {"mass": float(ctx[self.needs[0]].sum())}

    def value(self, ctx):
        return (1 - ctx[self.needs[0]]).sum()


@hookimpl
def lmmkit_components():
    return {"mistake": Mistake}
