"""Returns a value for each item of the step."""

from dataclasses import dataclass

from lmmkit.api import HiddenMean, Select, StepTerm, hookimpl

WHERE = "mistake.step_value"
CODE = "plugin/returned"


@dataclass(frozen=True, kw_only=True)
class Mistake(StepTerm):
    needs = (HiddenMean(Select(role="response")),)

    def embed(self, ctx):
        return ctx[self.needs[0]].float()

    def step_value(self, items, module):
        return items.square().sum(-1)


@hookimpl
def lmmkit_components():
    return {"mistake": Mistake}
