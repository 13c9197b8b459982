"""Parts that begin as a folder's weights: `from: FOLDER` -> written-out shapes, and where to fill from.

After `resolve`, a recipe says of every part what it is; the rest of lmmkit never asks a folder.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from lmmkit.errors import Problem, UserError, raise_all
from lmmkit.model.decoder import DecoderShape
from lmmkit.model.vision import VisionShape
from lmmkit.recipe import (
    Model,
    Recipe,
    RopeScaling,
    TextFrom,
    TextScratch,
    VisionFrom,
    VisionScratch,
    model_from_mapping,
)
from lmmkit.weights import own
from lmmkit.weights.source import Source, open_source, want_part

MODULES = {"vision": "lmm.vision", "connector": "lmm.connector", "text": "lmm.decoder"}


@dataclass(frozen=True, kw_only=True)
class Origin:
    """A folder that parts begin as: a public one, or one lmmkit wrote (`source` is None)."""

    folder: Path
    parts: tuple[str, ...]
    source: Source | None

    def fill(self, modules: Mapping[str, nn.Module]) -> None:
        """Copies the folder's tensors into its parts' modules, by part.

        Raises `UserError` with everything that does not fit, of all parts together.
        """
        self._each(modules, lambda source: source.fill, own.fill)

    def check(self, modules: Mapping[str, nn.Module]) -> None:
        """As `fill`, by the headers alone: the modules may be on meta."""
        self._each(modules, lambda source: source.check, own.check)

    def carried(self, modules: Mapping[str, nn.Module]) -> dict[str, Tensor]:
        """What the folder's encoder has besides, for an export to give back."""
        if "vision" not in self.parts:
            return {}
        if self.source is None:
            return own.carried_of(self.folder)
        found = self.source.spared("vision", modules["vision"])
        known = ("vision.encoder.", "vision.post_layernorm.", "vision.head.")
        return {name: t for name, t in found.items() if name.startswith(known)}

    def _each(self, modules: Mapping[str, nn.Module], public: Callable, ours: Callable) -> None:
        if self.source is None:
            for part in self.parts:
                ours(modules[part], self.folder, at=f"{MODULES[part]}.")
            return
        problems: list[Problem] = []
        with self.source.tensors() as stored:
            for part in self.parts:
                try:
                    public(self.source)(part, modules[part], stored)
                except UserError as error:
                    problems += error.problems
        raise_all(problems)


def resolve(recipe: Recipe, *, pickled: bool = False) -> tuple[Recipe, tuple[Origin, ...]]:
    """The recipe with shapes in the place of folders, and the folders to fill from.

    Raises `UserError` with the problems of all folders.
    """
    model, wanted, problems = recipe.model, {}, []
    for part in MODULES:
        section = getattr(model, part)
        if name := getattr(section, "from_", None):
            wanted.setdefault(recipe.path(name), []).append(part)
    origins = []
    for folder, parts in wanted.items():
        try:
            origin, model = _resolved(recipe, model, folder, tuple(parts), pickled)
            origins.append(origin)
        except UserError as error:
            problems += error.problems
    raise_all(problems)
    return replace(recipe, model=model), tuple(origins)


def _resolved(
    recipe: Recipe, model: Model, folder: Path, parts: tuple[str, ...], pickled: bool
) -> tuple[Origin, Model]:
    if own.is_ours(folder):
        there = model_from_mapping(own.config_of(folder)["model"])
        shapes: dict[str, Any] = {part: getattr(there, part) for part in parts}
        for part, shape in shapes.items():
            if shape is None:
                raise UserError(_lacks(recipe, part, folder))
        origin = Origin(folder=folder, parts=parts, source=None)
    else:
        layer = model.vision.feature_layer if isinstance(model.vision, VisionFrom) else None
        source = open_source(folder, feature_layer=layer, pickled=pickled)
        for part in parts:
            want_part(source, part, recipe.where(f"model.{part}.from"))
        shapes = {}
        if "text" in parts:
            assert source.text is not None
            shapes["text"] = text_section(source.text.shape)
        if "vision" in parts:
            assert source.vision is not None
            shapes["vision"] = vision_section(source.vision.shape)
        origin = Origin(folder=folder, parts=parts, source=source)
    if isinstance(model.text, TextFrom) and "text" in shapes:
        shapes["text"] = _shorter(recipe, shapes["text"], model.text)
    if isinstance(model.vision, VisionFrom) and "vision" in shapes:
        asked = model.vision
        changed = {
            key: value for key in ("mean", "std") if (value := getattr(asked, key)) is not None
        }  # the pictures' size is the folder's: its table of positions has one row a patch
        if asked.image_size not in (None, shapes["vision"].image_size):
            got, want = str(asked.image_size), f"{shapes['vision'].image_size}, as the folder says"
            where = recipe.where("model.vision.image_size")
            raise UserError(Problem("model/image-size", where, got, want, "Take the line out."))
        shapes["vision"] = replace(shapes["vision"], **changed)
    if "connector" in parts:
        assert model.connector is not None
        shapes["connector"] = replace(model.connector, from_=None)
    return origin, replace(model, **shapes)


def _shorter(recipe: Recipe, text: TextScratch, asked: TextFrom) -> TextScratch:
    if asked.context > text.context:
        where, want = recipe.where("model.text.context"), f"at most {text.context}, what it was trained for"
        raise UserError(Problem("model/context", where, str(asked.context), want, "Lower it."))
    return replace(text, context=asked.context)


def _lacks(recipe: Recipe, part: str, folder: Path) -> Problem:
    where, got = recipe.where(f"model.{part}.from"), f"{folder}, a model without it"
    return Problem("weights/part", where, got, f"a folder with a {part} part", "Name another folder.")


def text_section(shape: DecoderShape) -> TextScratch:
    """A decoder's shape as a recipe writes it."""
    rope = shape.rope
    scaling = None
    if rope.scaling != "none":
        names = {f.name for f in fields(RopeScaling)} - {"kind"}
        scaling = RopeScaling(kind=rope.scaling, **{name: getattr(rope, name) for name in names})
    return TextScratch(
        width=shape.width, depth=shape.depth, heads=shape.heads, mlp=shape.mlp, context=shape.context,
        kv_heads=shape.kv_heads, head_size=shape.head_size, vocab=shape.vocab, rope_theta=rope.theta,
        rope_scaling=scaling, norm_eps=shape.norm_eps, qkv_bias=shape.qkv_bias, qk_norm=shape.qk_norm,
        tied=shape.tied,
    )  # fmt: skip


def vision_section(shape: VisionShape) -> VisionScratch:
    """An encoder's shape as a recipe writes it."""
    return VisionScratch(
        width=shape.width, depth=shape.depth, heads=shape.heads, patch=shape.patch,
        image_size=shape.image.size, mlp=shape.mlp, class_token=shape.class_token, pre_norm=shape.pre_norm,
        patch_bias=shape.patch_bias, activation=shape.activation, norm_eps=shape.norm_eps,
        feature_layer=shape.feature_layer, mean=shape.image.mean, std=shape.image.std,
    )  # fmt: skip
