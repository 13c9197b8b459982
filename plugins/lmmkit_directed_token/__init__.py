"""The directed token of Direct-LLaVA (NeurIPS 2025, arXiv 2508.14264, section 3).

It is one learned token, `drt`, after the last token of a view. Under causal attention it attends to the
complete image and text, and a task reads its last hidden state. The paper's ablation 8 moves it.
"""

from dataclasses import dataclass
from typing import ClassVar, Literal

from lmmkit.api import Dims, Insert, LearnedTokens, TokenStrategy, View, hookimpl


@dataclass(frozen=True, kw_only=True)
class DirectedToken(TokenStrategy):
    """Inserts `drt` at `place`; its initial values are drawn from N(0, `std`^2).

    At `end` no other row attends to the token, so it is inserted only into views in which a term reads it.
    At `start` (after BOS) and `before_response` it is in every view, also in generation. At the start it
    cannot attend to an image, so the plan refuses a task that reads it there.
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
