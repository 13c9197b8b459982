"""Makes the reference of a stage: copies of what the stage trains, or the model of a folder."""

from __future__ import annotations

from copy import copy

import torch
from torch import nn

from lmmkit import build
from lmmkit.inference.load import load, open_teacher_models
from lmmkit.model.decoder import Decoder
from lmmkit.model.image_rows import ImageRows, ReducedRows
from lmmkit.model.reference import Reference
from lmmkit.model.vlm import LMM
from lmmkit.objective import Objective
from lmmkit.plan.prepare import Prepared
from lmmkit.plan.stage_plan import START
from lmmkit.training.distributed import fsdp
from lmmkit.training.distributed.process_group import Ranks


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
