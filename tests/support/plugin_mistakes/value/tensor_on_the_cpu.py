"""Makes a tensor without the device of the need."""

from dataclasses import dataclass

import torch

from lmmkit.api import HiddenAt, Loss, Select, hookimpl

WHERE = "mistake.value"
CODE = "plugin/device"


@dataclass(frozen=True, kw_only=True)
class Mistake(Loss):
    @property
    def needs(self):
        return (HiddenAt(Select(supervised=True)),)

    def value(self, ctx):
        x = ctx[self.needs[0]].float()
        falling = torch.linspace(1.0, 0.5, x.shape[-1])
        return (x.square() * falling).sum()


@hookimpl
def lmmkit_components():
    return {"mistake": Mistake}
