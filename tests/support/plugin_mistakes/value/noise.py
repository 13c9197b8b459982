"""Draws noise in `value`."""

from dataclasses import dataclass

import torch

from lmmkit.api import HiddenAt, Loss, Select, hookimpl

WHERE = "mistake.value"
CODE = "plugin/not-pure"


@dataclass(frozen=True, kw_only=True)
class Mistake(Loss):
    @property
    def needs(self):
        return (HiddenAt(Select(supervised=True)),)

    def value(self, ctx):
        x = ctx[self.needs[0]].float()
        return (x + 0.1 * torch.randn_like(x)).pow(2).sum()


@hookimpl
def lmmkit_components():
    return {"mistake": Mistake}
