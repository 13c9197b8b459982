"""Copies an identity into a linear layer, which is lost."""

from dataclasses import dataclass

import torch
from torch import nn

from lmmkit.api import HiddenAt, Loss, Select, hookimpl

WHERE = "mistake.modules"
CODE = "plugin/lost-value"


@dataclass(frozen=True, kw_only=True)
class Mistake(Loss):
    @property
    def needs(self):
        return (HiddenAt(Select(supervised=True)),)

    def modules(self, dims):
        head = nn.Linear(dims.width, dims.width, bias=False)
        with torch.no_grad():
            head.weight.copy_(torch.diag(torch.ones(dims.width)))
        return head

    def value(self, ctx):
        return ctx.module(ctx[self.needs[0]].float()).float().pow(2).sum()


@hookimpl
def lmmkit_components():
    return {"mistake": Mistake}
