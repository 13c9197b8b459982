"""Focal weights (Lin et al., arXiv 1708.02002): tokens that the model already predicts count less.

The factor (1 - p)^gamma weights the rows of the next-token loss. Simplified: the factor has no gradient, where the
paper differentiates it too (that is a `Loss` on `LogProb`); there is no factor for classes.
"""

from dataclasses import dataclass

from torch import Tensor

from lmmkit.api import Ctx, Dims, LogProb, Select, TokenWeight, hookimpl


@dataclass(frozen=True, kw_only=True)
class Focal(TokenWeight):
    """Weights each row by (1 - p)^gamma, where p is the probability of its target.

    gamma: how much less a token counts; 0 is the plain loss.
    """

    gamma: float = 2.0

    @property
    def needs(self) -> tuple[LogProb]:
        return (LogProb(Select()),)

    def check(self, dims: Dims) -> str:
        return "" if self.gamma >= 0 else f"gamma: {self.gamma}, which is below 0"

    def weigh(self, ctx: Ctx) -> Tensor:
        return (1 - ctx[self.needs[0]].exp()).clamp(min=0) ** self.gamma


@hookimpl
def lmmkit_components():
    return {"focal": Focal}
