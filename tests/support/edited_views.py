"""Edits of images, and terms that read a teacher of an edited view: a file as a plugin has it."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor

from lmmkit.api import AuxTask, HiddenAt, Loss, RowLoss, Select, TeacherAt, View


@dataclass(frozen=True)
class Turned:
    def __call__(self, pixels_CXY: Tensor) -> Tensor:
        return pixels_CXY.rot90(1, (1, 2)).contiguous()


@dataclass(frozen=True)
class Tiles:
    """Exchanges the quarters of an image."""

    def __call__(self, pixels_CXY: Tensor) -> Tensor:
        side = pixels_CXY.shape[-1] // 2
        return pixels_CXY.roll((side, side), (1, 2))


@dataclass(frozen=True)
class Half:
    """Makes a share of the columns black."""

    def __call__(self, pixels_CXY: Tensor) -> Tensor:
        first = torch.arange(pixels_CXY.shape[-1]) < pixels_CXY.shape[-1] / 2
        return pixels_CXY.masked_fill(first, -2.0)


@dataclass(frozen=True)
class Columns:
    """Makes a number of columns black, so many at each size."""

    n: int

    def __call__(self, pixels_CXY: Tensor) -> Tensor:
        return pixels_CXY.index_fill(2, torch.arange(self.n), -2.0)


@dataclass(frozen=True)
class Crop:
    """Enlarges a share of the image to its size."""

    share: float

    def __call__(self, pixels_CXY: Tensor) -> Tensor:
        size = pixels_CXY.shape[-1]
        side = round(self.share * size)
        return F.interpolate(pixels_CXY[None, :, :side, :side], size=(size, size), mode="bilinear")[0]


@dataclass(frozen=True, kw_only=True)
class Edited(AuxTask):
    """Makes a view with an edited image, and adds nothing."""

    edit: object

    @property
    def needs(self):
        return (HiddenAt(Select(view=self.name, kind="image")),)

    def views(self, sample, rng):
        if len(sample.images) != 1:
            return []
        images = (replace(sample.images[0], edit=self.edit),)
        return [View(sample=replace(sample, images=images))]

    def value(self, ctx):
        return ctx[self.needs[0]].float().square().sum()


@dataclass(frozen=True, kw_only=True)
class Reads(Loss):
    """Reads a teacher of a view."""

    view: str

    @property
    def needs(self):
        images = Select(view=self.view, kind="image")
        return HiddenAt(images), TeacherAt("dino", images)

    def value(self, ctx):
        states, features = (ctx[need].float() for need in self.needs)
        return (states.mean(1) * features.mean(1)).sum()


@dataclass(frozen=True, kw_only=True)
class Answers(Edited):
    """Makes the same view, whose answers are read."""

    def views(self, sample, rng):
        return [replace(view, supervision="read") for view in super().views(sample, rng)]


@dataclass(frozen=True, kw_only=True)
class Compares(RowLoss):
    """Compares logits with a teacher's."""

    teacher: str = "dino"
    at = Select(view="edited")

    def rows(self, logits_CV, target_C, teacher_CV):
        return (logits_CV - teacher_CV).square().mean(-1)
