"""Makes the reference of a stage: copies of what the stage trains, or the model of a folder."""

from __future__ import annotations

from copy import copy
from pathlib import Path

import torch
from torch import nn

from lmmkit import build
from lmmkit.api.sample import AnyRes, Native
from lmmkit.errors import Problem
from lmmkit.errors.plan import REFERENCE, TEACHER_MODEL
from lmmkit.inference.load import load, open_teacher_models
from lmmkit.model.decoder import Decoder
from lmmkit.model.image_rows import ImageRows, ReducedRows
from lmmkit.model.reference import Reference
from lmmkit.model.vlm import LMM
from lmmkit.objective import Objective
from lmmkit.plan import from_model
from lmmkit.plan.checks.tile_checks import fits_read, odd_head_size, takes_one_size
from lmmkit.plan.prepare import Prepared, prepare_bare
from lmmkit.plan.stage_plan import START
from lmmkit.training.distributed import fsdp
from lmmkit.training.distributed.process_group import Ranks
from lmmkit.weights import model_folder

# keys of a teacher that is read for its features
_OF_ENCODERS = ("image_size", "feature_layer", "mean", "std", "resample")


def set_reference(
    prepared: Prepared, stage: str, objective: Objective, ranks: Ranks, device: torch.device
) -> None:
    """Gives the objective the reference that its stage's plan reads, if any.

    `objective` is set to the stage, and has the weights that the stage begins with.
    """
    asked = prepared.plans[stage].reference
    objective.references = ()
    if asked:
        make = _start if asked == START else _of_folder
        objective.references = (make(prepared, stage, objective, ranks, device),)


def set_teachers(
    prepared: Prepared, stage: str, objective: Objective, ranks: Ranks, device: torch.device
) -> None:
    """Gives the objective the teachers that its stage's plan reads. Every rank reads their folders; those that are
    large are sharded."""
    objective.teachers, objective.teacher_models = {}, {}  # frees those of the stage before
    large = fsdp.sharded_teachers(prepared, stage, ranks)
    found = build.open_teachers(prepared, stage, device, cpu=large)
    for name in large:
        blocks = fsdp.blocks_of([found[name].encoder])
        fsdp.shard(found[name], blocks, prepared.recipe, ranks, device)
    objective.teachers = found
    large = fsdp.sharded_teacher_models(prepared, stage, ranks)
    whole = open_teacher_models(prepared, stage, device, cpu=large)
    for name in large:
        blocks = fsdp.blocks_of([whole[name].lmm.decoder, whole[name].lmm.vision])
        fsdp.shard(whole[name], blocks, prepared.recipe, ranks, device)
    objective.teacher_models = whole


def _start(
    prepared: Prepared, stage: str, objective: Objective, ranks: Ranks, device: torch.device
) -> Reference:
    """Returns the trained model with copies of the parts that change."""
    copies = build.reference_copies(prepared, stage, device)
    originals = build.parts_of(objective)
    rows, plan = copy(objective.lmm.image_rows), prepared.plans[stage]
    if plan.reducer is not None and f"plugin_{plan.reducer.name}" in copies:
        assert isinstance(rows, ReducedRows), "the model has the plan's reducer"
        rows.module = copies[f"plugin_{plan.reducer.name}"]
    reference = _composed({**originals, **dict(copies.items())}, copies, objective, rows)
    if not ranks.alone:
        fsdp.shard(reference, fsdp.blocks_of(copies.values()), prepared.recipe, ranks, device)
    reference.to_empty(device=device)
    if ranks.alone and isinstance(text := dict(copies.items()).get("text"), Decoder):
        text.tie()
    for name, part in copies.items():
        fsdp.copy_shards(originals[name], part)
    return reference


def _of_folder(
    prepared: Prepared, stage: str, objective: Objective, ranks: Ranks, device: torch.device
) -> Reference:
    """Returns the model of a folder. Every rank reads it, and keeps its shard."""
    folder = prepared.recipe.path(prepared.plans[stage].reference)
    where = device if ranks.alone else "cpu"
    opened = load(folder, device=where, trust_files=prepared.trust_files).objective
    parts = nn.ModuleDict(build.parts_of(opened))
    build.narrow_reference(parts, prepared.recipe, objective.compute)
    reference = _composed(dict(parts.items()), parts, objective, opened.lmm.image_rows)
    if not ranks.alone:
        fsdp.shard(reference, fsdp.blocks_of(parts.values()), prepared.recipe, ranks, device)
    return reference


def _composed(
    parts: dict[str, nn.Module], own: nn.ModuleDict, objective: Objective, image_rows: ImageRows
) -> Reference:
    lmm = LMM(parts["vision"], parts["connector"], parts["text"], objective.lmm.backend)  # type: ignore[arg-type]
    lmm.image_rows = image_rows
    return Reference(own, lmm, {n: parts[f"plugin_{n}"] for n in objective.plugins if f"plugin_{n}" in parts})


def reference_problems(prepared: Prepared) -> list[Problem]:
    """Returns the problems of the folders that stages name as their reference."""
    problems, recipe = [], prepared.recipe
    for stage, plan in prepared.plans.items():
        if plan.reference not in ("", START):
            where = recipe.where(f"stages.{stage}.reference")
            problems += folder_problems(prepared, stage, recipe.path(plan.reference), where)
    return problems


def folder_problems(prepared: Prepared, stage: str, folder: Path, where: str) -> list[Problem]:
    """Returns the problems of a model folder that is to compute the packed batches of a stage."""
    return [REFERENCE.at(where, got=got, stage=stage) for got in _misfits(prepared, stage, folder)]


def _misfits(prepared: Prepared, stage: str, folder: Path) -> list[str]:
    """Returns what in a folder does not fit the packed batches of a stage."""
    if not (folder / "config.json").is_file():
        return [f"no model in {folder}"]
    there = _opened(folder, prepared.trust_files)
    found = _other_tokenizer(prepared, there, folder)
    if (there.dims.image, there.image_rows) != (prepared.dims.image, prepared.image_rows):
        found.append(f"{folder}, a model that reads images of another size or grid")
    fits, model = fits_read(prepared.recipe, stage), there.recipe.model
    if any(isinstance(fit, AnyRes) for fit in fits) and not isinstance(model.chat.image_fit, AnyRes):
        found.append(f"{folder}, a model without a newline row, for images that are cut into tiles")
    if any(isinstance(fit, Native) for fit in fits):
        encoder = "a timm encoder that takes images of one size" if takes_one_size(model.vision) else ""
        if size := odd_head_size(model.vision):
            encoder = f"an encoder with heads of {size} values, an odd number"
        if encoder:
            found.append(f"{folder}, {encoder}, for images that keep their shape")
    if prepared.plans[stage].strategies:
        names = ", ".join(strategy.name for strategy, _ in prepared.plans[stage].strategies)
        found.append(f"{folder}, and learned tokens ({names}), which only `start` has")
    elif own := _token_plugins(folder, there):
        found.append(
            f"{folder}, a model with learned tokens ({', '.join(own)}), which this stage does not have"
        )
    return found


def _other_tokenizer(prepared: Prepared, there: Prepared, folder: Path) -> list[str]:
    same = there.tokenizer.files() == prepared.tokenizer.files()
    return [] if same else [f"{folder}, a model with another tokenizer"]


def teacher_model_problems(prepared: Prepared) -> list[Problem]:
    """Returns the problems of the teachers whose logits stages read: each reads the rows of the trained model."""
    problems = [
        TEACHER_MODEL.at(prepared.recipe.where(f"teachers.{name}"), got=got)
        for stage, plan in prepared.plans.items() for name in plan.teacher_models
        for got in _teacher_misfits(prepared, stage, name)
    ]  # fmt: skip
    return list(dict.fromkeys(problems))


def _teacher_misfits(prepared: Prepared, stage: str, name: str) -> list[str]:
    section = prepared.teachers[name].section
    folder = prepared.recipe.path(section.from_)
    there = _opened(folder, prepared.trust_files)
    found = _other_tokenizer(prepared, there, folder)
    if not found and there.dims.vocab != prepared.dims.vocab:
        found.append(f"{folder}, a head of {there.dims.vocab} rows, and one of {prepared.dims.vocab}")
    if there.image_rows != prepared.image_rows:
        found.append(f"{folder}, {there.image_rows} rows for an image, and {prepared.image_rows}")
    given = [key for key in _OF_ENCODERS if getattr(section, key) is not None]
    found += [f"`{key}`, and a model that reads images in its own way" for key in given]
    if prepared.plans[stage].strategies:
        names = ", ".join(strategy.name for strategy, _ in prepared.plans[stage].strategies)
        found.append(f"{folder}, and learned tokens of stage `{stage}` ({names}), which it does not have")
    if own := _token_plugins(folder, there):
        found.append(f"{folder}, a model with learned tokens ({', '.join(own)}), which no row has")
    return found


def _token_plugins(folder: Path, there: Prepared) -> list[str]:
    """Returns the plugins whose learned tokens are in every sequence of a folder's model."""
    config = model_folder.config_of(folder) if model_folder.is_ours(folder) else {}
    reducer = there.instances.components  # nothing else: it is opened without its learned tokens
    return [name for name in config.get("inference_plugins", ()) if name not in reducer]


def _opened(folder: Path, trust_files: bool) -> Prepared:
    """Returns what a model folder describes, without its weights."""
    if not model_folder.is_ours(folder):
        return prepare_bare(from_model.recipe_of(folder)[0])
    recipe = from_model.recipe_of_ours(folder, model_folder.config_of(folder), None)
    return prepare_bare(recipe, trust_files=trust_files)
