"""A term over the step, for tests: InfoNCE between image rows and response rows of one view, with a learned heat."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lmmkit.api import HiddenMean, Select, StepTerm, hookimpl

SHOWN, WORDS = HiddenMean(Select(kind="image"), layer=0), HiddenMean(Select(role="response"))


class Heat(nn.Module):
    def __init__(self):
        super().__init__()
        self.log = nn.Parameter(torch.empty(1))

    def reset_parameters(self) -> None:
        nn.init.constant_(self.log, -1.0)


@dataclass(frozen=True, kw_only=True)
class Contrast(StepTerm):
    """Finds the response of each image among those of the step. Samples without an image have no item."""

    @property
    def needs(self):
        return (SHOWN, WORDS)

    def count(self, batch):
        return batch.samples_with(SHOWN, WORDS)

    def modules(self, dims):
        return Heat()

    def embed(self, ctx) -> Tensor:
        pair = ctx.by_sample(SHOWN, WORDS, reduce="mean")
        return torch.stack(
            [F.normalize(x.to(torch.promote_types(x.dtype, torch.float32)), dim=-1) for x in pair], 1
        )

    def step_value(self, items: Tensor, module) -> Tensor:
        score = items[:, 0] @ items[:, 1].T / module.log.exp()
        own = torch.arange(len(items), device=items.device)
        return F.cross_entropy(score, own, reduction="sum") + F.cross_entropy(score.T, own, reduction="sum")


@hookimpl
def lmmkit_components():
    return {"contrast": Contrast}
