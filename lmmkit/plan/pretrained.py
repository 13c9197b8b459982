"""Resolves `from: FOLDER` to shapes, and copies the folder's weights into the model's parts.

After `resolve_pretrained`, a recipe contains the shape of every part. The rest of lmmkit reads no folder.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from lmmkit.attention.eager import Eager
from lmmkit.errors import Problem, UserError, raise_all
from lmmkit.errors.plan import CONTEXT, IMAGE_SIZE
from lmmkit.errors.weights import FEATURE_LAYER, PART
from lmmkit.model.vision import ViT
from lmmkit.plan import shapes
from lmmkit.recipe import (
    NO_WEIGHTS,
    Model,
    MovedPlaces,
    Recipe,
    TextFrom,
    TextScratch,
    VisionFrom,
    VisionScratch,
    VisionTimm,
    model_from_mapping,
    vision_from_mapping,
)
from lmmkit.weights import model_folder, name_maps
from lmmkit.weights.detect import open_pretrained, timm_source
from lmmkit.weights.encoders import VIT
from lmmkit.weights.pretrained_folder import PretrainedFolder, want_part
from lmmkit.weights.timm_encoder import TimmSource

MODULES = {"vision": "lmm.vision", "connector": "lmm.connector", "text": "lmm.decoder"}


@dataclass(frozen=True, kw_only=True)
class Pretrained:
    """Describes a folder with initial weights: a public one, or one that lmmkit wrote (`source` is None)."""

    folder: Path
    parts: tuple[str, ...]
    source: PretrainedFolder | None

    def fill(self, modules: Mapping[str, nn.Module]) -> None:
        """Copies the folder's tensors into its parts' modules, by part.

        Raises `UserError` with the mismatches of all parts together.
        """
        self._each(modules, lambda source: source.fill, model_folder.fill)

    def check(self, modules: Mapping[str, nn.Module]) -> None:
        """Checks names, shapes and types from the file headers. The modules may be on meta.

        Raises `UserError` in the cases of `fill`.
        """
        self._each(modules, lambda source: source.check, model_folder.check)

    def passthrough(self, modules: Mapping[str, nn.Module]) -> dict[str, Tensor]:
        """Returns the encoder's tensors that the model does not use and an export writes back."""
        if "vision" not in self.parts or not isinstance(modules["vision"], ViT):
            return {}
        if self.source is None:
            return model_folder.carried_of(self.folder) | self._later_blocks(modules["vision"])
        found = self.source.spared("vision", modules["vision"])
        known = ("vision.encoder.", "vision.post_layernorm.", "vision.head.")
        return {name: t for name, t in found.items() if name.startswith(known)}

    def _later_blocks(self, module: ViT) -> dict[str, Tensor]:
        """Returns the blocks after the feature layer from an lmmkit folder, under public names."""
        with torch.device("meta"):
            whole = ViT(replace(module.shape, feature_layer=-1), Eager())
        built, at = model_folder.unique_tensors(module), f"{MODULES['vision']}."
        placed = {t: place for t, place in name_maps.map_names(whole, VIT).items() if place.name not in built}
        there = model_folder.tensors(self.folder, {at + place.name for place in placed.values()})
        there = {name.removeprefix(at): tensor for name, tensor in there.items()}
        return {f"vision.{t}": place.of(there) for t, place in placed.items() if place.name in there}

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
        raise_all(dict.fromkeys(problems))  # a wrapper's prefix is in the names of all parts


def resolve_pretrained(recipe: Recipe, *, pickled: bool = False) -> tuple[Recipe, tuple[Pretrained, ...]]:
    """Returns the recipe with shapes in place of folders and files, and the folders with the weights.

    Raises `UserError` with the problems from all folders.
    """
    model, wanted, problems = recipe.model, {}, []
    for part in MODULES:
        section = getattr(model, part)
        if name := getattr(section, "from_", None):
            wanted.setdefault(recipe.path(name), []).append(part)
    pretrained = []
    for folder, parts in wanted.items():
        try:
            origin, model = _resolved(recipe, model, folder, tuple(parts), pickled=pickled)
            pretrained.append(origin)
        except UserError as error:
            problems += error.problems
    if isinstance(model.vision, VisionTimm) and model.vision.weights != NO_WEIGHTS:
        origin, model = _timm_file(recipe, model, model.vision, pickled)
        pretrained.append(origin)
    raise_all(problems)
    return replace(recipe, model=model), tuple(pretrained)


def resolve_encoder(
    recipe: Recipe, key: str, asked: VisionFrom
) -> tuple[Pretrained, VisionScratch | VisionTimm]:
    """Returns an encoder's folder and shape. `key`: the section of the recipe that asks for it, where problems are
    reported.

    Raises `UserError` if the folder has no encoder, or one that does not fit.
    """
    places = MovedPlaces(recipe.places.at, old="model.vision", new=key)
    alone = replace(recipe, places=places, model=replace(recipe.model, vision=asked))
    origin, model = _resolved(alone, alone.model, recipe.path(asked.from_), ("vision",), pickled=False)
    assert isinstance(model.vision, VisionScratch | VisionTimm), "it has a shape now"
    return origin, model.vision


def _timm_file(recipe: Recipe, model: Model, vision: VisionTimm, pickled: bool) -> tuple[Pretrained, Model]:
    file = recipe.path(vision.weights)
    encoder = TimmSource(section=vision, resized=vision.image_size is not None)
    origin = Pretrained(folder=file, parts=("vision",), source=timm_source(encoder, file, pickled=pickled))
    return origin, replace(model, vision=replace(vision, weights=NO_WEIGHTS))


def _resolved(
    recipe: Recipe, model: Model, folder: Path, parts: tuple[str, ...], *, pickled: bool
) -> tuple[Pretrained, Model]:
    if model_folder.is_ours(folder):
        config = model_folder.config_of(folder)
        sections = _sections_of_ours(recipe, config, folder, parts)
        origin = Pretrained(folder=folder, parts=parts, source=None)
        if model_folder.is_encoder(config) and isinstance(
            model.vision, VisionFrom
        ):  # the folder contains all blocks of the encoder
            layer = -2 if model.vision.feature_layer is None else model.vision.feature_layer
            model = replace(model, vision=replace(model.vision, feature_layer=layer))
    else:
        vision = model.vision if "vision" in parts and isinstance(model.vision, VisionFrom) else None
        layer = vision.feature_layer if vision else None
        source = open_pretrained(folder, feature_layer=layer, pickled=pickled)
        for part in parts:
            want_part(source, part, recipe.where(f"model.{part}.from"))
        sections = {}
        if "text" in parts:
            sections["text"] = source.text_section()
        if "vision" in parts:
            assert source.vision is not None
            sections["vision"] = shapes.resolved_encoder(source.vision.section, str(folder))
        origin = Pretrained(folder=folder, parts=parts, source=source)
    if isinstance(model.text, TextFrom) and "text" in sections:
        sections["text"] = _with_context(recipe, sections["text"], model.text)
    if isinstance(model.vision, VisionFrom) and "vision" in sections:
        origin, sections["vision"] = _with_changes(recipe, origin, sections["vision"], model.vision)
    if "connector" in parts:
        assert model.connector is not None
        sections["connector"] = replace(model.connector, from_=None)
    return origin, replace(model, **sections)


def _sections_of_ours(
    recipe: Recipe, config: Mapping[str, Any], folder: Path, parts: tuple[str, ...]
) -> dict:
    """Returns the `model` sections from a folder that lmmkit wrote, by part."""
    if model_folder.is_encoder(config):
        vision = vision_from_mapping(config["model"]["vision"])
        sections = {part: vision if part == "vision" else None for part in parts}
    else:
        model = model_from_mapping(config["model"])
        sections = {part: getattr(model, part) for part in parts}
    raise_all(_missing_part(recipe, part, folder) for part, section in sections.items() if section is None)
    return sections


def _with_changes(
    recipe: Recipe, origin: Pretrained, there: VisionScratch | VisionTimm, asked: VisionFrom
) -> tuple[Pretrained, VisionScratch | VisionTimm]:
    """Returns `origin` and the folder's encoder section, both with the changes that the recipe asks for."""
    changed: dict[str, Any] = {
        key: value for key in ("mean", "std", "resample") if (value := getattr(asked, key)) is not None
    }
    if origin.source is None and asked.feature_layer is not None:
        changed["feature_layer"] = _feature_layer(recipe, there, asked.feature_layer)
    if asked.image_size not in (None, there.image_size):
        if not (origin.source and isinstance(origin.source.vision, TimmSource)):
            # other encoders have a position table with one matrix row per patch
            where = recipe.where("model.vision.image_size")
            raise UserError(IMAGE_SIZE.at(where, got=str(asked.image_size), size=there.image_size))
        changed["image_size"] = asked.image_size
        encoder = replace(origin.source.vision, resized=True)
        origin = replace(origin, source=replace(origin.source, vision=encoder))
    return origin, replace(there, **changed)


def _feature_layer(recipe: Recipe, there: VisionScratch | VisionTimm, layer: int) -> int:
    """Returns `layer`. Raises `UserError` if the blocks in an lmmkit folder do not reach that state."""
    depth = shapes.encoder_depth(there)
    states = [n if n >= 0 else depth + 1 + n for n in (layer, there.feature_layer)]
    if not 0 <= states[0] <= states[1]:
        where, got = recipe.where("model.vision.feature_layer"), f"{layer}, state {states[0]} of {depth}"
        layers = f"a state up to {states[1]}: the folder contains no later blocks"
        raise UserError(FEATURE_LAYER.at(where, got=got, layers=layers))
    return layer


def _with_context(recipe: Recipe, text: TextScratch, asked: TextFrom) -> TextScratch:
    if asked.context > text.context:
        where = recipe.where("model.text.context")
        raise UserError(CONTEXT.at(where, got=str(asked.context), context=text.context))
    return replace(text, context=asked.context)


def _missing_part(recipe: Recipe, part: str, folder: Path) -> Problem:
    return PART.at(recipe.where(f"model.{part}.from"), got=f"{folder}, a model without it", part=part)
