"""Takes a random half of the vocabulary."""

from dataclasses import dataclass

import torch

from lmmkit.api import RowLoss, hookimpl

WHERE = "mistake.rows"
CODE = "plugin/not-pure"


@dataclass(frozen=True, kw_only=True)
class Mistake(RowLoss):
    def rows(self, logits_CV, target_C):
        some = torch.rand(logits_CV.shape[1], device=logits_CV.device) < 0.5
        return logits_CV[:, some].float().logsumexp(-1).square()


@hookimpl
def lmmkit_components():
    return {"mistake": Mistake}
