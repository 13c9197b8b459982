"""Misspells the reference."""

from dataclasses import dataclass

from lmmkit.api import LogProb, Loss, Select, hookimpl

WHERE = "mistake.needs"
CODE = "plugin/returned"


@dataclass(frozen=True, kw_only=True)
class Mistake(Loss):
    needs = (LogProb(Select(), model="ref"),)

    def value(self, ctx):
        return ctx[self.needs[0]].square().sum()


@hookimpl
def lmmkit_components():
    return {"mistake": Mistake}
