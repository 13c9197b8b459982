"""Returns a tensor."""

from dataclasses import dataclass

import torch

from lmmkit.api import AttnMass, Loss, Select, hookimpl

WHERE = "mistake.count"
CODE = "plugin/returned"


@dataclass(frozen=True, kw_only=True)
class Mistake(Loss):
    @property
    def needs(self):
        return (AttnMass(q=Select(supervised=True)),)

    def count(self, batch):
        return torch.tensor(len(batch.gathers[self.needs[0]]))

    def value(self, ctx):
        return (1 - ctx[self.needs[0]]).sum()


@hookimpl
def lmmkit_components():
    return {"mistake": Mistake}
