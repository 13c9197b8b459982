"""Anneals by the clock."""

import time
from dataclasses import dataclass

from lmmkit.api import AttnMass, Loss, Select, hookimpl

WHERE = "mistake.value"
CODE = "plugin/not-pure"


@dataclass(frozen=True, kw_only=True)
class Mistake(Loss):
    @property
    def needs(self):
        return (AttnMass(q=Select(supervised=True)),)

    def value(self, ctx):
        return ctx[self.needs[0]].sum() * (time.time() % 1)


@hookimpl
def lmmkit_components():
    return {"mistake": Mistake}
