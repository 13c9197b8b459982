"""Declares a need of its own, where `rows` gets logits and targets alone."""

from dataclasses import dataclass

from torch.nn import functional as F

from lmmkit.api import HiddenAt, RowLoss, Select, hookimpl

WHERE = "mistake.needs"
CODE = "plugin/returned"


@dataclass(frozen=True, kw_only=True)
class Mistake(RowLoss):
    needs = (HiddenAt(Select(supervised=True)),)

    def rows(self, logits_CV, target_C):
        return F.cross_entropy(logits_CV, target_C, reduction="none")


@hookimpl
def lmmkit_components():
    return {"mistake": Mistake}
