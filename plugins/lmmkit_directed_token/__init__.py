"""The directed token of Direct-LLaVA (NeurIPS 2025, arXiv 2508.14264, section 3).

One learned row, `drt`, after the last token of a view: under causal attention it sees all of the
image and the text, and a task reads its last hidden state. Ablation 8 moves it.
"""

from dataclasses import dataclass
from typing import ClassVar, Literal

from lmmkit.api import Dims, Insert, LearnedTokens, TokenStrategy, View, hookimpl


@dataclass(frozen=True, kw_only=True)
class DirectedToken(TokenStrategy):
    """Inserts `drt` at `place`, drawn from N(0, `std`).

    At `end` nobody but a reader could notice it, so the core inserts it only into views that read
    it. At `start` (after BOS) and `before_response` every view carries it, generation included; a
    token at the start sees no image, and the plan refuses an image task that reads it there.
    """

    place: Literal["end", "start", "before_response"] = "end"
    std: float = 0.02
    provides: ClassVar[tuple[str, ...]] = ("drt",)

    def edit(self, view: View) -> list[Insert]:
        return [Insert(self.place, "drt")]

    def check(self, dims: Dims) -> str:
        return f"std: {self.std}, which is below 0" if self.std < 0 else ""

    def modules(self, dims: Dims) -> LearnedTokens:
        return LearnedTokens(1, dims.width, std=self.std)


@hookimpl
def lmmkit_components():
    return {"directed_token": DirectedToken}
