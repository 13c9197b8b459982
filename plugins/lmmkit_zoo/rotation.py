"""V-GIFT (arXiv 2604.12966): questions about an image that the image itself answers, as further training text.

`rotation` turns the image by quarter turns and asks by how much; `colour` exchanges the colour channels and asks
which order they have. Both are answered in words, by the next-token loss, and no language prior helps. Simplified:
the paper matches the colours of marked points where `colour` asks for the order of channels, exchanged after they are
normalised. Its third question is in points.py. As in the paper, a share of the samples has such a view.
"""

from dataclasses import dataclass, replace
from itertools import permutations
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

from lmmkit.api import AuxTask, Sample, Turn, View, hookimpl


@dataclass(frozen=True)
class Turned:
    """Turns an image to the left by `quarters` quarter turns."""

    quarters: int

    def __call__(self, pixels_CXY: Tensor) -> Tensor:
        return torch.rot90(pixels_CXY, self.quarters, (1, 2))


@dataclass(frozen=True)
class Exchanged:
    """Puts channel `order[i]` of an image in the place of channel i."""

    order: tuple[int, ...]

    def __call__(self, pixels_CXY: Tensor) -> Tensor:
        return pixels_CXY[list(self.order)]


@dataclass(frozen=True, kw_only=True)
class ImageQuestion(AuxTask):
    """Edits all images of a sample in one of several ways, and asks in which. The loss is next-token.

    share: of the samples, in each epoch.
    """

    share: float = 0.1
    text_loss: ClassVar[bool] = True
    answers: ClassVar[dict]
    question: str

    def check(self, dims) -> str:
        return "" if 0 < self.share <= 1 else f"share: {self.share}, which is not above 0 and at most 1"

    def views(self, sample: Sample, rng: np.random.Generator) -> list[View]:
        if not sample.images or rng.random() >= self.share:
            return []
        answer = list(self.answers)[int(rng.integers(len(self.answers)))]
        images = tuple(replace(image, edit=self.answers[answer]) for image in sample.images)
        turns = (Turn("user", self.question, images=len(images)), Turn("assistant", answer))
        return [View(sample=replace(sample, images=images, turns=turns), supervision="train")]

    def score(self, view: View, text: str) -> tuple[float, float]:
        return float(text.strip() == view.sample.turns[1].text), 1 / len(self.answers)


@dataclass(frozen=True, kw_only=True)
class Rotation(ImageQuestion):
    """Asks by how many quarter turns the image is rotated."""

    question: str = "By how many degrees is the image rotated to the left?"
    answers: ClassVar[dict] = {f"{90 * n}": Turned(n) if n else None for n in range(4)}


@dataclass(frozen=True, kw_only=True)
class Colour(ImageQuestion):
    """Asks in which order the channels red, green and blue of the image are."""

    question: str = "In which order are the colours red, green and blue of the image?"
    answers: ClassVar[dict] = {
        ", ".join(("red", "green", "blue")[i] for i in order): Exchanged(order)
        if order != (0, 1, 2)
        else None
        for order in permutations(range(3))
    }


@hookimpl
def lmmkit_components():
    return {"rotation": Rotation, "colour": Colour}
