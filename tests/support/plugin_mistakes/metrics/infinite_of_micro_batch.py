"""Does not have to add up, but divides by nothing in its metric."""

from dataclasses import dataclass

from lmmkit.api import HiddenMean, Loss, Metric, Select, hookimpl

CODE = "plugin/not-finite"
WHERE = "mistake.metrics"


@dataclass(frozen=True, kw_only=True)
class Mistake(Loss):
    additive = False
    needs = (HiddenMean(Select(role="response")),)

    def value(self, ctx):
        return ctx[self.needs[0]].float().var()

    def metrics(self, ctx):
        x = ctx[self.needs[0]].float()
        return {"share": Metric(x.sum() / (0 * x).sum(), 0.0)}


@hookimpl
def lmmkit_components():
    return {"mistake": Mistake}
