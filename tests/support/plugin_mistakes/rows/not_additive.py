"""A loss of rows that wants to be a mean of micro-batches."""

from dataclasses import dataclass

import torch.nn.functional as F

from lmmkit.api import RowLoss, hookimpl

CODE = "plugin/additive"
WHERE = "plugins.mistake"


@dataclass(frozen=True, kw_only=True)
class Mistake(RowLoss):
    additive = False

    def rows(self, logits_CV, target_C):
        return F.cross_entropy(logits_CV, target_C, reduction="none")


@hookimpl
def lmmkit_components():
    return {"mistake": Mistake}
