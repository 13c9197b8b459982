"""Weights a row by its log-probability, which is below 0."""

from dataclasses import dataclass

from lmmkit.api import LogProb, Select, TokenWeight, hookimpl

WHERE = "mistake.weigh"
CODE = "plugin/weights"


@dataclass(frozen=True, kw_only=True)
class Mistake(TokenWeight):
    needs = (LogProb(Select()),)

    def weigh(self, ctx):
        return ctx[self.needs[0]]


@hookimpl
def lmmkit_components():
    return {"mistake": Mistake}
