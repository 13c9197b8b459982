"""A puzzle: what an order task shuffled in one view, and the order that the model gives it."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Puzzle:
    """Holds the pieces of one puzzle: words, or the numbers of an image's tiles, row by row.

    `shuffled`: as the model gets them; `predicted`: in the order that the model gives them; `gold`: in the right order.
    `chance`: the probability that a guess is right. `grid`: tiles in a row and in a column of an image, 0 for
    words. `p_predicted`, `p_gold`: the model's probability of both orders, where it has one for each order.
    """

    shuffled: tuple[int | str, ...]
    predicted: tuple[int | str, ...]
    gold: tuple[int | str, ...]
    chance: float
    grid: int = 0
    p_predicted: float | None = None
    p_gold: float | None = None

    @property
    def right(self) -> bool:
        """Returns whether the predicted order is the right one."""
        return self.predicted == self.gold
