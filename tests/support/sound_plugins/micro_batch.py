"""Compares each response with those of the micro-batch, and says that this does not add up."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F

from lmmkit.api import HiddenMean, Loss, Metric, Select, hookimpl


@dataclass(frozen=True, kw_only=True)
class Sound(Loss):
    additive = False
    needs = (HiddenMean(Select(role="response")), HiddenMean(Select(role="response"), layer=0))

    def scores(self, ctx):
        one, other = (F.normalize(ctx[need].float(), dim=-1) for need in self.needs)
        return one @ other.T / 0.1

    def value(self, ctx):
        scores = self.scores(ctx)
        return F.cross_entropy(scores, torch.arange(len(scores), device=scores.device))

    def metrics(self, ctx):
        scores = self.scores(ctx)
        right = scores.argmax(1) == torch.arange(len(scores), device=scores.device)
        return {"right": Metric(right.float().mean(), 1 / len(scores))}


@hookimpl
def lmmkit_components():
    return {"mistake": Sound}
