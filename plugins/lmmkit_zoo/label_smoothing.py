"""Label smoothing (Szegedy et al., arXiv 1512.00567): a share of the target goes to all tokens alike.

The term reads all logits of a row, so it is a `RowLoss`. It takes the place of `next_token`, which gets no weight.
Simplified: text of the main view only, without the supervised text of tasks.
"""

import math
from dataclasses import dataclass

from torch import Tensor
from torch.nn import functional as F

from lmmkit.api import Dims, RowLoss, hookimpl


@dataclass(frozen=True, kw_only=True)
class LabelSmoothing(RowLoss):
    """Computes the cross entropy with smoothed targets, the mean over rows.

    share: what all tokens together get of the target.
    """

    share: float = 0.1

    def check(self, dims: Dims) -> str:
        return "" if 0 <= self.share < 1 else f"share: {self.share}, which is not from 0 to below 1"

    def rows(self, logits_CV: Tensor, target_C: Tensor) -> Tensor:
        return F.cross_entropy(logits_CV, target_C, reduction="none", label_smoothing=self.share)

    def chance(self, dims: Dims) -> float:
        return math.log(dims.vocab)


@hookimpl
def lmmkit_components():
    return {"label_smoothing": LabelSmoothing}
