"""Forgets a letter of `metrics`."""

from dataclasses import dataclass

from lmmkit.api import HiddenAt, Loss, Metric, Select, hookimpl

WHERE = "mistake.metric"
CODE = "plugin/unused-method"


@dataclass(frozen=True, kw_only=True)
class Mistake(Loss):
    @property
    def needs(self):
        return (HiddenAt(Select(supervised=True)),)

    def value(self, ctx):
        return ctx[self.needs[0]].float().square().sum()

    def metric(self, ctx):
        x = ctx[self.needs[0]].float()
        return {"norm": Metric(x.norm(dim=-1).sum(), 0.0)}


@hookimpl
def lmmkit_components():
    return {"mistake": Mistake}
