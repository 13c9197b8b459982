"""Edits of images that a teacher reads in another size must change the same part of them."""

from __future__ import annotations

from dataclasses import dataclass, replace

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from lmmkit.api import AuxTask, HiddenAt, Loss, RowLoss, Select, TeacherAt, View
from lmmkit.plan.dry_run.view_checks import LARGER, ROUGH, area_means, disagreement, smooth_image
from lmmkit.testing import dry_run


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


def test_a_smaller_image_has_means_of_what_is_under_its_pixels():
    image = smooth_image(6)
    assert torch.allclose(area_means(image, 3), image.unflatten(1, (3, 2)).unflatten(3, (3, 2)).mean((2, 4)))
    assert torch.allclose(area_means(image, 6), image) and area_means(image, 4).shape == (3, 4, 4)
    first = (image[0, 0, 0] + (image[0, 0, 1] + image[0, 1, 0]) / 2 + image[0, 1, 1] / 4) / 2.25
    assert area_means(image, 4)[0, 0, 0] == pytest.approx(float(first), rel=1e-5)


@pytest.mark.parametrize("size", [20, 36, 60, 96, 336])
@pytest.mark.parametrize("edit", [Turned(), Tiles(), Half(), Crop(0.6)], ids=repr)
def test_an_edit_in_shares_of_the_side_is_the_same_at_every_size(edit, size):
    off, least = disagreement("edited", edit, 48, size)
    assert off < LARGER * least + ROUGH


@pytest.mark.parametrize("size", [36, 60, 96, 336])
@pytest.mark.parametrize("n", [6, 12, 24])
def test_an_edit_in_pixels_is_not(n, size):
    off, least = disagreement("edited", Columns(n), 48, size)
    assert off > LARGER * least + ROUGH


@pytest.mark.parametrize("edit", [Turned(), Tiles(), Half(), Crop(0.5), Columns(12)], ids=repr)
def test_a_task_whose_edit_depends_on_the_size_is_refused_where_a_teacher_reads_its_views(edit):
    task = Edited(name="edited", edit=edit)
    found = dry_run(task, Reads(name="reads", view="edited"))
    assert [problem.code for problem in found] == ["plugin/edit-size"] * (edit == Columns(12)), found
    assert all("edited" in problem.where and "`dino`" in problem.hint for problem in found)
    assert dry_run(task, Reads(name="reads", view="main")) == []
    assert dry_run(task) == []
    of_logits = dry_run(Answers(name="edited", edit=edit), Compares(name="compares"))
    assert [problem.code for problem in of_logits] == ["plugin/edit-size"] * (edit == Columns(12)), of_logits
