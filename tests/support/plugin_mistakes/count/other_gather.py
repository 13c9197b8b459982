"""Reads rows of a need that it does not declare."""

from dataclasses import dataclass

from lmmkit.api import AttnMass, HiddenAt, Loss, Select, hookimpl

WHERE = "mistake.count"
CODE = "plugin/raised"


@dataclass(frozen=True, kw_only=True)
class Mistake(Loss):
    @property
    def needs(self):
        return (AttnMass(q=Select(supervised=True)),)

    def count(self, batch):
        return len(batch.gathers[HiddenAt(Select(supervised=True))])

    def value(self, ctx):
        return (1 - ctx[self.needs[0]]).sum()


@hookimpl
def lmmkit_components():
    return {"mistake": Mistake}
