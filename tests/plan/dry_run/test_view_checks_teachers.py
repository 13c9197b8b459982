"""Edits of images that a teacher reads in another size must change the same part of them."""

from __future__ import annotations

import pytest
import torch

from lmmkit.plan.dry_run.view_checks import LARGER, ROUGH, area_means, disagreement, smooth_image
from lmmkit.testing import dry_run
from tests.support.edited_views import Answers, Columns, Compares, Crop, Edited, Half, Reads, Tiles, Turned


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
