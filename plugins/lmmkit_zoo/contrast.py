"""Contrast of image and text (HACL, arXiv 2312.06968): find the text of each image among all texts of the step.

The decoder reads the image and the text in two views of their own, so neither has a hint of the other. An image is the
mean state of its rows, a text the mean state of its responses, and the loss is InfoNCE in both directions.
Simplified: the paper reads a token at the end through a projection, keeps a queue of earlier items, and adds texts with
false statements. Equal texts of a step count as different.
"""

import math
from dataclasses import dataclass, replace

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lmmkit.api import Ctx, ExtraView, HiddenMean, Metric, Sample, Select, StepTerm, Turn, View, hookimpl


@dataclass(frozen=True, kw_only=True)
class Apart(ExtraView):
    """Makes a view of a sample's images alone, and one of its text alone."""

    roles = ("images", "text")

    def views(self, sample: Sample, rng: np.random.Generator) -> list[View]:
        if not sample.images:
            return []
        images = replace(sample, turns=(Turn("user", "", images=len(sample.images)),))
        turns = tuple(replace(turn, images=0, places=()) for turn in sample.turns)
        text = replace(sample, turns=turns, images=())
        return [View(sample=images, role="images"), View(sample=text, role="text")]


class Temperature(nn.Module):
    """Holds the logarithm of what scores are divided by."""

    def __init__(self, start: float):
        super().__init__()
        self.start, self.log = start, nn.Parameter(torch.empty(1))

    def reset_parameters(self) -> None:
        nn.init.constant_(self.log, math.log(self.start))

    def forward(self) -> Tensor:
        return self.log.clamp(min=math.log(0.01)).exp()


@dataclass(frozen=True, kw_only=True)
class Contrast(StepTerm):
    """Finds the text of each image, and the image of each text: the mean cross entropy of both, over samples.

    views: the instance of `apart`. temperature: at the start; it is learned, and is at least 0.01.
    """

    views: str = "apart"
    temperature: float = 0.07

    @property
    def needs(self) -> tuple[HiddenMean, HiddenMean]:
        images = Select(view=self.views, view_role="images", kind="image")
        return HiddenMean(images), HiddenMean(Select(view=self.views, view_role="text", role="response"))

    def check(self, dims) -> str:
        fits = self.temperature >= 0.01
        return "" if fits else f"temperature: {self.temperature}, which is not at least 0.01"

    def modules(self, dims) -> Temperature:
        return Temperature(max(self.temperature, 0.01))

    def count(self, batch) -> int:
        return batch.samples_with(*self.needs)

    def embed(self, ctx: Ctx) -> Tensor:
        pairs = ctx.by_sample(*self.needs, reduce="mean")
        return torch.stack([F.normalize(states.float(), dim=-1) for states in pairs], 1)

    def step_value(self, items: Tensor, module: nn.Module | None) -> Tensor:
        assert module is not None, "`modules` builds it"
        scores = items[:, 0] @ items[:, 1].T / module()
        own = torch.arange(len(items), device=items.device)
        both = F.cross_entropy(scores, own, reduction="sum"), F.cross_entropy(scores.T, own, reduction="sum")
        return (both[0] + both[1]) / 2

    def metrics(self, ctx: Ctx) -> dict[str, Metric]:
        return {"similarity": Metric(self.embed(ctx).prod(1).sum(), 0.0)}


@hookimpl
def lmmkit_components():
    return {"apart": Apart, "contrast": Contrast}
