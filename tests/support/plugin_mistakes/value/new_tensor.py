"""Returns a new tensor instead of a computed one."""

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
        return torch.tensor(ctx[self.needs[0]].sum().item(), requires_grad=True)


@hookimpl
def lmmkit_components():
    return {"mistake": Mistake}
