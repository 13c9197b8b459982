"""Has parameters and no `reset_parameters`."""

from dataclasses import dataclass

import torch
from torch import nn

from lmmkit.api import HiddenAt, Loss, Select, hookimpl

WHERE = "mistake.modules"
CODE = "plugin/uninitialised"


class Scale(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.scale = nn.Parameter(torch.ones(width))

    def forward(self, x):
        return self.scale * x


@dataclass(frozen=True, kw_only=True)
class Mistake(Loss):
    @property
    def needs(self):
        return (HiddenAt(Select(supervised=True)),)

    def modules(self, dims):
        return Scale(dims.width)

    def value(self, ctx):
        return ctx.module(ctx[self.needs[0]].float()).float().pow(2).sum()


@hookimpl
def lmmkit_components():
    return {"mistake": Mistake}
