"""DPO (arXiv 2305.18290) and mDPO (arXiv 2406.11839): prefer one answer to another, and one image to its crop.

A record has the preferred conversation, and in the field `rejected` the worse last answer. Terms compare the model with
the stage's `reference`, usually `start`. With `crop` above 0 the value also has mDPO's two terms: the same answer is
worse with a small part of the image, and does not become less likely than in the reference. Simplified: in place of a
missing `rejected` another answer of the conversation is the worse one, and each epoch draws another crop.
"""

import math
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
import torch.nn.functional as F
from torch import Tensor

from lmmkit.api import AuxTask, Ctx, LogProb, Metric, Sample, Select, Turn, View, hookimpl


@dataclass(frozen=True)
class Cropped:
    """Shows only a window of the image, `side` of its height and width, at (x, y) from 0 to 1, in full size."""

    side: float
    x: float
    y: float

    def __call__(self, pixels_CXY: Tensor) -> Tensor:
        sizes, spans = pixels_CXY.shape[1:], []
        for size, at in zip(sizes, (self.x, self.y), strict=True):
            length = max(1, round(size * self.side))
            begin = int(at * (size - length))
            spans.append(slice(begin, begin + length))
        return F.interpolate(pixels_CXY[None, :, spans[0], spans[1]], tuple(sizes), mode="bilinear")[0]


@dataclass(frozen=True, kw_only=True)
class Dpo(AuxTask):
    """Prefers the answer of a record to a rejected one.

    beta: how far the model may move from the reference (smaller: further). crop: the share of height and width that
    the crop keeps; 0: no views with a crop. rejected: the field of the record.
    """

    beta: float = 0.1
    crop: float = 0.0
    rejected: str = "rejected"
    roles = ("chosen", "rejected", "cropped")

    def check(self, dims) -> str:
        return "" if 0 <= self.crop < 1 else f"crop: {self.crop}, which is not at least 0 and below 1"

    def views(self, sample: Sample, rng: np.random.Generator) -> list[View]:
        *asked, answer = sample.turns
        others = [turn.text for turn in asked if turn.role == "assistant" and turn.text != answer.text]
        worse = sample.meta.get(self.rejected) or (others and others[int(rng.integers(len(others)))])
        if answer.role != "assistant" or not answer.supervised or not worse:
            return []
        found = {"chosen": sample, "rejected": replace(sample, turns=(*asked, Turn("assistant", str(worse))))}
        if self.crop and sample.images:
            edit = Cropped(self.crop, *rng.random(2).tolist())
            found["cropped"] = replace(sample, images=tuple(replace(i, edit=edit) for i in sample.images))
        return [View(sample=s, role=role, supervision="read") for role, s in found.items()]

    def read(self, role: str, model: Literal["policy", "reference"]) -> LogProb:
        return LogProb(Select(view=self.name, view_role=role, turn=-1), model)

    @property
    def needs(self) -> tuple[LogProb, ...]:
        roles = self.roles if self.crop else self.roles[:2]
        return tuple(self.read(role, model) for role in roles for model in ("policy", "reference"))

    def count(self, batch) -> int:
        return batch.samples_with(*self.needs[:4])  # chosen and rejected

    def rewards(self, ctx: Ctx, better: str, worse: str) -> tuple[Tensor, Tensor]:
        a, b = ctx.by_sample(self.read(better, "policy"), self.read(worse, "policy"))
        ref_a, ref_b = ctx.by_sample(self.read(better, "reference"), self.read(worse, "reference"))
        return self.beta * (a - ref_a), self.beta * (b - ref_b)

    def value(self, ctx: Ctx) -> Tensor:
        chosen, rejected = self.rewards(ctx, "chosen", "rejected")
        value = -F.logsigmoid(chosen - rejected).sum()
        if self.crop:
            chosen, cropped = self.rewards(ctx, "chosen", "cropped")
            value = value - F.logsigmoid(chosen - cropped).sum() - F.logsigmoid(chosen).sum()
        return value

    def chance(self, dims) -> float | None:
        return None if self.crop else math.log(2)

    def metrics(self, ctx: Ctx) -> dict[str, Metric]:
        chosen, rejected = self.rewards(ctx, "chosen", "rejected")
        right = (chosen > rejected).float().sum()
        return {"preferred": Metric(right, len(chosen) / 2), "margin": Metric((chosen - rejected).sum(), 0.0)}


@hookimpl
def lmmkit_components():
    return {"dpo": Dpo}
