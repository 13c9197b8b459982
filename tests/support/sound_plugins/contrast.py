"""Compares each response with those of the whole step."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F

from lmmkit.api import HiddenMean, Select, StepTerm, hookimpl


@dataclass(frozen=True, kw_only=True)
class Sound(StepTerm):
    needs = (HiddenMean(Select(role="response")), HiddenMean(Select(role="response"), layer=0))

    def embed(self, ctx):
        return torch.stack([F.normalize(ctx[need].float(), dim=-1) for need in self.needs], 1)

    def step_value(self, items, module):
        scores = items[:, 0] @ items[:, 1].T / 0.1
        return F.cross_entropy(scores, torch.arange(len(items), device=items.device), reduction="sum")


@hookimpl
def lmmkit_components():
    return {"mistake": Sound}
