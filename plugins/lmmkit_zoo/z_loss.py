"""The z-loss (PaLM, arXiv 2204.02311): the log-sum-exp of the logits stays near 0.

Simplified: rows of the main view only. The paper takes a weight of 1e-4.
"""

from dataclasses import dataclass

from torch import Tensor

from lmmkit.api import Ctx, LogSumExp, Loss, Metric, Select, hookimpl


@dataclass(frozen=True, kw_only=True)
class ZLoss(Loss):
    """Adds the square of the log-sum-exp, the mean over rows."""

    @property
    def needs(self) -> tuple[LogSumExp]:
        return (LogSumExp(Select()),)

    def value(self, ctx: Ctx) -> Tensor:
        return ctx[self.needs[0]].square().sum()

    def metrics(self, ctx: Ctx) -> dict[str, Metric]:
        return {"log_sum_exp": Metric(ctx[self.needs[0]].sum(), 0.0)}


@hookimpl
def lmmkit_components():
    return {"z_loss": ZLoss}
