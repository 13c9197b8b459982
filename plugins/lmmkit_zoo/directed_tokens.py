"""Several directed tokens (Direct-LLaVA, arXiv 2508.14264, which has one): 1, 4 or 16 at the end of a view.

Each attends to the complete image and text, and to the tokens before it. A task reads their mean state, and its
gradient reaches the image through all of them. Simplified: the tokens differ in their initial values only.
"""

from dataclasses import dataclass
from typing import ClassVar

from lmmkit_shuffle import ImageOrder

from lmmkit.api import Dims, HiddenMean, Insert, LearnedTokens, Select, TokenStrategy, View, hookimpl


@dataclass(frozen=True, kw_only=True)
class DirectedTokens(TokenStrategy):
    """Inserts `count` tokens named `directed` at the end of the views in which a term reads them.

    std: of their initial values.
    """

    count: int = 4
    std: float = 0.02
    provides: ClassVar[tuple[str, ...]] = ("directed",)

    def check(self, dims: Dims) -> str:
        if self.count < 1:
            return f"count: {self.count}, which is below 1"
        return f"std: {self.std}, which is below 0" if self.std < 0 else ""

    def edit(self, view: View) -> list[Insert]:
        return [Insert("end", "directed", self.count)]

    def modules(self, dims: Dims) -> LearnedTokens:
        return LearnedTokens(max(self.count, 0), dims.width, std=self.std)


@dataclass(frozen=True, kw_only=True)
class DirectedOrder(ImageOrder):
    """Predicts the permutation of an image's tiles, as `image_order`, from the mean state of all directed tokens."""

    @property
    def needs(self) -> tuple[HiddenMean]:
        return (HiddenMean(Select(view=self.name, token_name="directed")),)


@hookimpl
def lmmkit_components():
    return {"directed_tokens": DirectedTokens, "directed_order": DirectedOrder}
