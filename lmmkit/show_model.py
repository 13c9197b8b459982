"""Describes a model without its values: architecture, parameters by part, type and size."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from lmmkit import build
from lmmkit.attention.eager import Eager
from lmmkit.errors import UserError
from lmmkit.errors.weights import OPTION
from lmmkit.import_export import DTYPES
from lmmkit.inference.load import find_model_folder
from lmmkit.plan import from_model, shapes
from lmmkit.plan.prepare import prepare_bare
from lmmkit.recipe import VisionScratch, VisionTimm, section_mapping, to_mapping, vision_from_mapping
from lmmkit.weights import model_folder
from lmmkit.weights.detect import open_pretrained


def show_model(path: Path, *, vision: Path | None = None) -> dict[str, Any]:
    """Returns architecture, parameters by part, type and size of a model, and what its prompts are if no chat template
    writes them. Allocates no weights.

    `vision`: a folder with the encoder, if a public model lacks it.
    """
    folder = path if (path / "config.json").is_file() else find_model_folder(path)
    encoder, foreign = _encoder_alone(folder), ""
    if vision is not None and (encoder is not None or model_folder.is_ours(folder)):
        what = "a folder that needs no other"
        raise UserError(OPTION.at(str(folder), got=f"--vision with {what}", what=what, options="--vision"))
    if encoder is not None:
        return _of_encoder(*encoder)
    if model_folder.is_ours(folder):
        config = model_folder.config_of(folder)
        recipe = replace(from_model.recipe_of_ours(folder, config, None), plugins={})
        kind, dtype = "lmmkit", str(model_folder.dtype_of(folder))
    else:
        recipe, source = from_model.described(folder, vision=vision)
        kind, dtype = source.kind, source.dtype
        foreign = from_model.foreign_prompts(source, recipe.model.chat.template)
    prepared = prepare_bare(recipe, allow_missing_tokenizer=True)
    objective = build.shell(prepared.recipe, {}, prepared.dims, torch.device("cpu"))
    tokenizer = prepared.tokenizer.size or None
    model = to_mapping(prepared.recipe)["model"]
    if foreign:
        model["chat"] |= {"template": None, "prompts": f"{foreign}: no template writes them"}
    return _shown(kind, dtype, build.modules(objective), model, tokenizer)


def _encoder_alone(folder: Path) -> tuple[str, str, VisionScratch | VisionTimm] | None:
    """Returns (kind, type, vision section) of an encoder's folder; None for other folders."""
    if model_folder.is_ours(folder):
        config = model_folder.config_of(folder)
        if not model_folder.is_encoder(config):
            return None
        return "lmmkit", str(model_folder.dtype_of(folder)), vision_from_mapping(config["model"]["vision"])
    source = open_pretrained(folder)
    if source.parts() != ("vision",) or source.vision is None:
        return None
    return source.kind, source.dtype, shapes.resolved_encoder(source.vision.section, str(folder))


def _of_encoder(kind: str, dtype: str, section: VisionScratch | VisionTimm) -> dict[str, Any]:
    with torch.device("meta"):
        module = build.encoder(section, Eager(), "model.vision")
    return _shown(kind, dtype, {"vision": module}, {"vision": section_mapping(section)}, None)


def _shown(
    kind: str, dtype: str, modules: Mapping[str, nn.Module], model: dict[str, Any], tokenizer: int | None
) -> dict[str, Any]:
    dtype = dtype.removeprefix("torch.")
    size = DTYPES.get(dtype, torch.float32).itemsize
    counts = {part: sum(p.numel() for p in module.parameters()) for part, module in modules.items()}
    return {
        "kind": kind, "dtype": dtype, "parameters": counts, "total": sum(counts.values()),
        "bytes": size * sum(counts.values()), "model": model, "tokenizer": tokenizer,
    }  # fmt: skip
