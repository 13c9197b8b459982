"""The image-to-response guided loss of Direct-LLaVA (arXiv 2508.14264): 1 - alpha(v, r).

alpha is the attention that response tokens pay to the image, averaged over heads, layers and tokens.
Settings choose between the interpretations that the paper allows.
"""

from dataclasses import dataclass
from typing import Literal

from torch import Tensor

from lmmkit.api import AttnMass, Batch, Ctx, Loss, Metric, Select, hookimpl


@dataclass(frozen=True, kw_only=True)
class GuidedLoss(Loss):
    """Raises the attention that responses pay to the image.

    alpha: `mass`, the sum over all image keys (at most 1), or `mean`, the average over them.
    mean: over all response tokens (`token`), or first over the tokens of each sample (`sample`).
    query: the `response` tokens, including the end-of-turn token, or the rows that `predict` them.
    layers: `all`, or layer numbers from 0.
    """

    alpha: Literal["mass", "mean"] = "mass"
    mean: Literal["token", "sample"] = "token"
    query: Literal["response", "predict"] = "response"
    layers: Literal["all"] | tuple[int, ...] = "all"

    @property
    def needs(self) -> tuple[AttnMass]:
        shift = -1 if self.query == "predict" else 0
        return (AttnMass(q=Select(supervised=True, shift=shift), layers=self.layers),)

    def count(self, batch: Batch) -> int:
        gather = batch.gathers[self.needs[0]]
        return len(gather) if self.mean == "token" else len(gather.size_G)

    def value(self, ctx: Ctx) -> Tensor:
        alpha_Q = ctx[self.needs[0]]
        if self.alpha == "mean":
            alpha_Q = alpha_Q / self._keys(ctx)
        return self._sum(ctx, 1 - alpha_Q)

    def metrics(self, ctx: Ctx) -> dict[str, Metric]:
        return {"mass": Metric(self._sum(ctx, ctx[self.needs[0]]), self._sum(ctx, self._uniform(ctx)))}

    def _uniform(self, ctx: Ctx) -> Tensor:
        """Returns the mass on the image under uniform attention: [Q]."""
        uniform_Q = ctx.batch.gathers[self.needs[0]].uniform_Q
        assert uniform_Q is not None, "packing sets it for attention mass"
        return uniform_Q

    def _keys(self, ctx: Ctx) -> Tensor:
        """Returns the number of image rows that each query attends to: [Q]."""
        gather = ctx.batch.gathers[self.needs[0]]
        pos_T = ctx.batch.forest.pos_T.to(gather.row_Q.device, non_blocking=True)
        rows_Q = pos_T[gather.row_Q] + 1
        return self._uniform(ctx) * rows_Q

    def _sum(self, ctx: Ctx, x_Q: Tensor) -> Tensor:
        """Returns the sum over tokens, or the sum of the samples' means."""
        if self.mean == "token":
            return x_Q.sum()
        gather = ctx.batch.gathers[self.needs[0]]
        return (x_Q / gather.size_G[gather.group_Q]).sum()


@hookimpl
def lmmkit_components():
    return {"guided_loss": GuidedLoss}
