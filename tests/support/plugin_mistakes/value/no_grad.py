"""Computes the value without gradient."""

from dataclasses import dataclass

import torch

from lmmkit.api import AttnMass, Loss, Select, hookimpl

WHERE = "mistake.value"
CODE = "plugin/detached"


@dataclass(frozen=True, kw_only=True)
class Mistake(Loss):
    @property
    def needs(self):
        return (AttnMass(q=Select(supervised=True)),)

    def value(self, ctx):
        with torch.no_grad():
            return (1 - ctx[self.needs[0]]).sum()


@hookimpl
def lmmkit_components():
    return {"mistake": Mistake}
