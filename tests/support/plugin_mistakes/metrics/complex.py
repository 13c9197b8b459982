"""Gives a complex total."""

from dataclasses import dataclass

from lmmkit.api import HiddenAt, Loss, Metric, Select, hookimpl

WHERE = "mistake.metrics"
CODE = "plugin/returned"


@dataclass(frozen=True, kw_only=True)
class Mistake(Loss):
    needs = (HiddenAt(Select(supervised=True)),)

    def value(self, ctx):
        return ctx[self.needs[0]].float().square().sum()

    def metrics(self, ctx):
        return {"phase": Metric(ctx[self.needs[0]].float().sum() * 1j, 0.0)}


@hookimpl
def lmmkit_components():
    return {"mistake": Mistake}
