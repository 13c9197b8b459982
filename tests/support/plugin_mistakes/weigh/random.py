"""Draws weights from the global generator."""

from dataclasses import dataclass

import torch

from lmmkit.api import LogProb, Select, TokenWeight, hookimpl

WHERE = "mistake.weigh"
CODE = "plugin/not-pure"


@dataclass(frozen=True, kw_only=True)
class Mistake(TokenWeight):
    needs = (LogProb(Select()),)

    def weigh(self, ctx):
        return torch.rand(len(ctx[self.needs[0]]))


@hookimpl
def lmmkit_components():
    return {"mistake": Mistake}
