"""V-GIFT (arXiv 2604.12966), its third question: which point of another view of an image is the marked one.

The image is shown twice, the second time turned. A square marks a place of the first; of four squares of different
colours in the second, one is at the same place. Simplified: the second view is a turn, without crops or changes of
colour; the marks and the words of the question are our own.
"""

from dataclasses import dataclass, replace
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

from lmmkit.api import AuxTask, Sample, Turn, View, hookimpl

SIDE = 1 / 12  # of a square, as a share of the image
COLOURS = {
    "red": (2.0, -2.0, -2.0),
    "green": (-2.0, 2.0, -2.0),
    "blue": (-2.0, -2.0, 2.0),
    "yellow": (2.0, 2.0, -2.0),
}
WHITE = (2.0, 2.0, 2.0)  # normalised, as the colours
Point = tuple[float, float]


@dataclass(frozen=True)
class Marked:
    """Turns an image to the left, then draws a square at each point; points are (row, column) in 0..1."""

    quarters: int
    squares: tuple[tuple[Point, tuple[float, float, float]], ...]

    def __call__(self, pixels_CXY: Tensor) -> Tensor:
        turned = torch.rot90(pixels_CXY, self.quarters, (1, 2)).clone()
        side = max(1, round(SIDE * turned.shape[1]))
        for (row, column), colour in self.squares:
            i, j = (round(place * (turned.shape[1] - side)) for place in (row, column))
            turned[:, i : i + side, j : j + side] = torch.tensor(colour).to(turned)[:, None, None]
        return turned


def turned(point: Point, quarters: int) -> Point:
    """Returns where a point is after quarter turns of the image to the left."""
    for _ in range(quarters):
        point = (1 - point[1], point[0])
    return point


@dataclass(frozen=True, kw_only=True)
class Points(AuxTask):
    """Asks which of four marked points of a turned image is the one marked in the image. The loss is next-token.

    share: of the samples, in each epoch.
    """

    share: float = 0.1
    question: str = "Which colour has the square that is at the place of the white square of the first image?"
    text_loss: ClassVar[bool] = True

    def check(self, dims) -> str:
        return "" if 0 < self.share <= 1 else f"share: {self.share}, which is not above 0 and at most 1"

    def views(self, sample: Sample, rng: np.random.Generator) -> list[View]:
        if not sample.images or rng.random() >= self.share:
            return []
        points: list[Point] = []
        while len(points) < len(COLOURS):
            point = (float(rng.random()), float(rng.random()))
            if all(abs(point[0] - y) + abs(point[1] - x) > 0.3 for y, x in points):
                points.append(point)
        names, quarters = rng.permutation(list(COLOURS)).tolist(), int(rng.integers(4))
        others = ((turned(point, quarters), COLOURS[name]) for point, name in zip(points, names, strict=True))
        edits = Marked(0, ((points[0], WHITE),)), Marked(quarters, tuple(others))
        images = tuple(replace(sample.images[0], edit=edit) for edit in edits)
        turns = (Turn("user", self.question, images=2), Turn("assistant", names[0]))
        return [View(sample=replace(sample, images=images, turns=turns), supervision="train")]

    def score(self, view: View, text: str) -> tuple[float, float]:
        return float(text.strip() == view.sample.turns[1].text), 1 / len(COLOURS)


@hookimpl
def lmmkit_components():
    return {"points": Points}
