"""Opens the encoders of the teachers that a stage reads."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import replace

import torch
from torch import nn

from lmmkit.attention.eager import Eager
from lmmkit.build.device import backend, compute_dtype
from lmmkit.build.model import build_encoder, encoder
from lmmkit.errors import Problem, UserError, raise_all
from lmmkit.model.teacher import Teacher
from lmmkit.model.transforms.frozen_bf16 import narrow_matrices
from lmmkit.plan.prepare import Prepared
from lmmkit.plan.teachers import TeacherFolder
from lmmkit.recipe import VisionScratch


def check_teachers(prepared: Prepared) -> None:
    """Compares the folders of the teachers that stages read with their shapes, by their headers.

    Raises `UserError` with each tensor that is missing, extra, or has a wrong shape or dtype.
    """
    problems: list[Problem] = []
    for name in sorted({name for plan in prepared.plans.values() for name in plan.teachers}):
        try:
            prepared.teachers[name].pretrained.check({"vision": teacher_shell(prepared, name)})
        except UserError as error:
            problems += error.problems
    raise_all(problems)


def teacher_shell(prepared: Prepared, name: str) -> nn.Module:
    """Returns a teacher's encoder without values, in the dtypes in which it is kept."""
    folder = prepared.teachers[name]
    with torch.device("meta"):
        module = encoder(folder.vision, Eager(), f"teachers.{name}").requires_grad_(False)
    if _narrow(folder):
        narrow_matrices(module, autocast=False)
    return module


def open_teachers(
    prepared: Prepared, stage: str, device: torch.device, *, cpu: Collection[str] = ()
) -> dict[str, Teacher]:
    """Returns the teachers that a stage reads, by name, with their weights. Those in `cpu` are not yet on `device`."""
    names = prepared.plans[stage].teachers
    return {
        name: _open_teacher(prepared, name, device).to("cpu" if name in cpu else device) for name in names
    }


def _open_teacher(prepared: Prepared, name: str, device: torch.device) -> Teacher:
    folder, recipe = prepared.teachers[name], prepared.recipe
    asked = replace(
        recipe, model=replace(recipe.model, vision=folder.vision),
        numerics=replace(recipe.numerics, compute=folder.section.dtype),
    )  # fmt: skip
    module = build_encoder(folder.pretrained, folder.vision, torch.float32, backend(asked, device))
    compute = compute_dtype(asked, device)
    if _narrow(folder):
        narrow_matrices(module.requires_grad_(False), autocast=compute != torch.float32)
    return Teacher(module, folder.image, compute)


def _narrow(folder: TeacherFolder) -> bool:
    """Returns whether matrices are kept in bfloat16. timm's modules read each other's weights, so theirs are not."""
    return folder.section.dtype == "bfloat16" and isinstance(folder.vision, VisionScratch)
