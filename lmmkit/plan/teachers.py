"""Opens the folders of the recipe's teachers, and checks what terms ask of them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

from lmmkit import plugin_calls
from lmmkit.api.model_info import Dims, ImageSpec
from lmmkit.api.needs import TeacherAt, reads_images, teacher_models_of, teachers_of
from lmmkit.errors import Problem, UserError, did_you_mean, raise_all
from lmmkit.errors.plan import IMAGE_ROWS, NO_TEACHER, PATCHES, TEACHER_FIT, UNUSED_TEACHER
from lmmkit.plan import shapes
from lmmkit.plan.instances import Instances, without_patches
from lmmkit.plan.pretrained import Pretrained, resolve_encoder
from lmmkit.recipe import Recipe, TeacherFrom, VisionScratch, VisionTimm
from lmmkit.weights.weights_hash import weights_hash

LARGE = 1 << 30  # bytes of a teacher from which on several ranks share it
NO_TEACHERS: Mapping[str, TeacherFolder] = MappingProxyType({})


@dataclass(frozen=True, kw_only=True)
class TeacherFolder:
    """Describes a teacher from the files of its folder. `vision`: the shape of its encoder."""

    section: TeacherFrom
    pretrained: Pretrained
    vision: VisionScratch | VisionTimm
    image: ImageSpec

    def identity(self) -> str:
        """Returns what decides about its features: its weights, its shape, and how it reads images."""
        return f"{weights_hash(self.pretrained.folder)} {self.vision} {self.image} {self.section.dtype}"


def resolve_teachers(recipe: Recipe) -> dict[str, TeacherFolder]:
    """Returns the recipe's teachers by name. Reads no weights.

    Raises `UserError` with the problems of all folders.
    """
    problems: list[Problem] = []
    found = {}
    for name, section in recipe.teachers.items():
        key = f"teachers.{name}"
        try:
            pretrained, vision = resolve_encoder(recipe, key, section)
            image = shapes.image_of(vision, recipe.where(key))
            found[name] = TeacherFolder(section=section, pretrained=pretrained, vision=vision, image=image)
        except UserError as error:
            problems += error.problems
    raise_all(problems)
    return found


def teacher_problems(recipe: Recipe, instances: Instances, dims: Dims) -> list[Problem]:
    """Returns the problems of needs that no teacher can meet, and of teachers that no plugin reads."""
    problems: list[Problem] = []
    read: set[str] = set()
    for reader in instances.readers:
        needs = plugin_calls.needs(reader)
        read.update(teachers_of(needs), models := teacher_models_of(needs))
        problems += [
            _no_teacher(recipe, dims, reader.name, name) for name in models if name not in dims.teachers
        ]
        for need in (need for need in needs if isinstance(need, TeacherAt)):
            problems += _need_problems(recipe, instances, dims, reader.name, need)
    for name in recipe.teachers:
        if name not in read:
            where = recipe.where(f"teachers.{name}")
            problems.append(UNUSED_TEACHER.at(where, got=f"`{name}`, which no plugin reads", name=name))
    return problems


def _need_problems(
    recipe: Recipe, instances: Instances, dims: Dims, reader: str, need: TeacherAt
) -> list[Problem]:
    where, name = recipe.where(f"plugins.{reader}"), need.teacher
    if recipe.model.vision is None:
        return [IMAGE_ROWS.at(where, got="a model without an encoder")]
    if not reads_images(need):
        return [IMAGE_ROWS.at(where, got=f"`at` {need.at}")]
    if name not in dims.teachers:
        return [_no_teacher(recipe, dims, reader, name)]
    grid, own = dims.teachers[name].grid, dims.image.grid
    if need.fit not in ("resize", "exact"):
        return [TEACHER_FIT.at(where, got=f"fit {need.fit!r}", grid=_by(own))]
    if need.fit == "exact" and grid != own:
        return [
            TEACHER_FIT.at(where, got=f"fit `exact` of a teacher with {_by(grid)} patches", grid=_by(own))
        ]
    if by := without_patches(recipe, instances, dims):
        return [PATCHES.at(where, got=f"features of a teacher, and rows of `{by}`")]
    return []


def _no_teacher(recipe: Recipe, dims: Dims, reader: str, name: str) -> Problem:
    got = f"`{reader}` reads teacher `{name}`, which the recipe does not have"
    return NO_TEACHER.at(
        recipe.where(f"plugins.{reader}"), got=got, nearest=did_you_mean(name, dims.teachers)
    )


def _by(grid: tuple[int, int]) -> str:
    return f"{grid[0]} x {grid[1]}"
