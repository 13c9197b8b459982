"""Subtracts the mean of the micro-batch from each item."""

from dataclasses import dataclass

from lmmkit.api import HiddenMean, Select, StepTerm, hookimpl

WHERE = "mistake.embed"
CODE = "plugin/not-additive"


@dataclass(frozen=True, kw_only=True)
class Mistake(StepTerm):
    needs = (HiddenMean(Select(role="response")),)

    def embed(self, ctx):
        x = ctx[self.needs[0]].float()
        return x - x.mean(0)

    def step_value(self, items, module):
        return items.square().sum()


@hookimpl
def lmmkit_components():
    return {"mistake": Mistake}
