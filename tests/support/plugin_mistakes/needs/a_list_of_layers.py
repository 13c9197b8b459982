"""Gives layers as a list, which cannot be hashed."""

from dataclasses import dataclass

from lmmkit.api import AttnMass, Loss, Select, hookimpl

WHERE = "mistake.needs"
CODE = "plugin/raised"


@dataclass(frozen=True, kw_only=True)
class Mistake(Loss):
    @property
    def needs(self):
        return (AttnMass(q=Select(supervised=True), layers=[0, 1]),)

    def value(self, ctx):
        return ctx[self.needs[0]].float().sum()


@hookimpl
def lmmkit_components():
    return {"mistake": Mistake}
