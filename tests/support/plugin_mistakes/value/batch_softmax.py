"""Normalises over the micro-batch."""

from dataclasses import dataclass

from lmmkit.api import AttnMass, Loss, Select, hookimpl

WHERE = "mistake.value"
CODE = "plugin/not-additive"


@dataclass(frozen=True, kw_only=True)
class Mistake(Loss):
    @property
    def needs(self):
        return (AttnMass(q=Select(supervised=True)),)

    def value(self, ctx):
        x = ctx[self.needs[0]]
        return -x.log_softmax(0).sum()


@hookimpl
def lmmkit_components():
    return {"mistake": Mistake}
