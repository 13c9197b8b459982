"""Registers (arXiv 2309.16588): learned tokens that nothing reads, as places where a model can store what is global.

The rows after them attend to them, in training and generation. Simplified: the paper adds them to the sequence of
a vision transformer; here they are in the decoder, behind or before each image, or at the start.
"""

from dataclasses import dataclass
from typing import ClassVar, Literal

from lmmkit.api import Dims, Insert, LearnedTokens, TokenStrategy, View, hookimpl


@dataclass(frozen=True, kw_only=True)
class Registers(TokenStrategy):
    """Inserts `count` registers at `place`; a stage has them if its `tokens` names the plugin.

    std: of their initial values. At the start they cannot attend to an image, and are constants.
    """

    count: int = 4
    place: Literal["after_image", "before_image", "start"] = "after_image"
    std: float = 0.02
    provides: ClassVar[tuple[str, ...]] = ("register",)
    unread: ClassVar[bool] = True

    def check(self, dims: Dims) -> str:
        if self.count < 1:
            return f"count: {self.count}, which is below 1"
        return f"std: {self.std}, which is below 0" if self.std < 0 else ""

    def edit(self, view: View) -> list[Insert]:
        return [Insert(self.place, "register", self.count)]

    def modules(self, dims: Dims) -> LearnedTokens:
        return LearnedTokens(max(self.count, 0), dims.width, std=self.std)


@hookimpl
def lmmkit_components():
    return {"registers": Registers}
