"""Divides by a setting that is 0."""

from dataclasses import dataclass

import torch

from lmmkit.api import AttnMass, Loss, Select, hookimpl

WHERE = "mistake.value"
CODE = "plugin/not-finite"


@dataclass(frozen=True, kw_only=True)
class Mistake(Loss):
    temperature: float = 0.0

    @property
    def needs(self):
        return (AttnMass(q=Select(supervised=True)),)

    def value(self, ctx):
        return (1 - ctx[self.needs[0]]).sum() * (1 / torch.tensor(self.temperature))


@hookimpl
def lmmkit_components():
    return {"mistake": Mistake}
