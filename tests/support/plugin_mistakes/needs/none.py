"""Declares no need."""

from dataclasses import dataclass

from lmmkit.api import Loss, hookimpl

WHERE = "mistake.value"
CODE = "plugin/raised"


@dataclass(frozen=True, kw_only=True)
class Mistake(Loss):
    def count(self, batch):
        return len(batch.views)

    def value(self, ctx):
        return ctx[self.needs[0]].float().sum()


@hookimpl
def lmmkit_components():
    return {"mistake": Mistake}
