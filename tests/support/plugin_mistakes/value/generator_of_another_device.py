"""Draws on the device of the need with the generator of the CPU."""

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
        noise = torch.randn(x.shape, generator=ctx.rng, device=x.device)
        return (x + noise).square().sum()


@hookimpl
def lmmkit_components():
    return {"mistake": Mistake}
