"""Weights rows by a parameter that should be trained."""

from dataclasses import dataclass

import torch
from torch import nn

from lmmkit.api import TokenWeight, hookimpl

WHERE = "mistake.modules"
CODE = "plugin/no-gradient"


class Scale(nn.Module):
    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.empty(1))

    def reset_parameters(self):
        nn.init.zeros_(self.scale)


@dataclass(frozen=True, kw_only=True)
class Mistake(TokenWeight):
    def modules(self, dims):
        return Scale()

    def weigh(self, ctx):
        return ctx.module.scale.exp().expand(ctx.batch.count["next_token"])


@hookimpl
def lmmkit_components():
    return {"mistake": Mistake}
