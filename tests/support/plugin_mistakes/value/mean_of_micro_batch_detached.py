"""Does not have to add up, but has no gradient."""

from dataclasses import dataclass

from lmmkit.api import HiddenMean, Loss, Select, hookimpl

CODE = "plugin/detached"
WHERE = "mistake.value"


@dataclass(frozen=True, kw_only=True)
class Mistake(Loss):
    additive = False
    needs = (HiddenMean(Select(role="response")),)

    def value(self, ctx):
        return ctx[self.needs[0]].detach().float().var()


@hookimpl
def lmmkit_components():
    return {"mistake": Mistake}
