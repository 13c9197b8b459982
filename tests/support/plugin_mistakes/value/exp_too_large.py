"""Overflows."""

from dataclasses import dataclass

import torch

from lmmkit.api import HiddenAt, Loss, Select, hookimpl

WHERE = "mistake.value"
CODE = "plugin/not-finite"


@dataclass(frozen=True, kw_only=True)
class Mistake(Loss):
    @property
    def needs(self):
        return (HiddenAt(Select(supervised=True)),)

    def value(self, ctx):
        return torch.exp(1000 * ctx[self.needs[0]].float().abs()).sum()


@hookimpl
def lmmkit_components():
    return {"mistake": Mistake}
