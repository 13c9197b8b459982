"""Takes the logarithm of a negative number."""

from dataclasses import dataclass

import torch

from lmmkit.api import AttnMass, Loss, Select, hookimpl

WHERE = "mistake.value"
CODE = "plugin/not-finite"


@dataclass(frozen=True, kw_only=True)
class Mistake(Loss):
    @property
    def needs(self):
        return (AttnMass(q=Select(supervised=True)),)

    def value(self, ctx):
        return torch.log(-ctx[self.needs[0]]).sum()


@hookimpl
def lmmkit_components():
    return {"mistake": Mistake}
