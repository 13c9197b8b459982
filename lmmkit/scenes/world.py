"""The parameters of a biased world."""

from __future__ import annotations

from dataclasses import dataclass

from lmmkit.errors import Problem, did_you_mean
from lmmkit.errors.commands import BIAS, UNKNOWN_KIND
from lmmkit.scenes.priors import KINDS


@dataclass(frozen=True, kw_only=True)
class World:
    """Holds the parameters of a biased world.

    bias: share of the usual answer among the questions of a key, in training and in `heldout.json`. kinds: of
    questions. count, heldout: number of scenes. questions: most in a training conversation. text_records: number of
    conversations without an image; None: as many as training scenes.
    """

    bias: float
    kinds: tuple[str, ...] = tuple(KINDS)
    count: int = 6000
    heldout: int = 500
    seed: int = 0
    questions: int = 4
    text_records: int | None = None

    @property
    def texts(self) -> int:
        """Returns the number of conversations without an image."""
        return self.count if self.text_records is None else self.text_records

    def problems(self) -> list[Problem]:
        """Returns what is wrong with bias and kinds."""
        found = [
            UNKNOWN_KIND.at(
                "--kinds", got=f"`{kind}`", kinds=", ".join(KINDS), nearest=did_you_mean(kind, KINDS)
            )
            for kind in self.kinds or ("",)
            if kind not in KINDS
        ]
        return found if 0 <= self.bias <= 1 else [BIAS.at("--bias", got=f"{self.bias:g}"), *found]
