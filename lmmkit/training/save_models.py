"""The model folders of a run: the model at the end of a stage, and the best one so far."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lmmkit import build
from lmmkit.model.transforms import lora
from lmmkit.objective import Objective
from lmmkit.plan.prepare import Prepared
from lmmkit.recipe import dump, section_mapping, to_mapping
from lmmkit.training.distributed import fsdp
from lmmkit.training.run_context import RunContext
from lmmkit.weights import model_folder


def save_model(
    folder: Path, objective: Objective, prepared: Prepared, stage: str, step: int, extra: Mapping[str, Any]
) -> None:
    """Writes the model after `step` with full weights. Low-rank updates are merged into them, and also
    written separately. `extra` is added to the config."""
    plan = prepared.plans[stage]
    config = {
        "stage": stage,
        "step": step,
        "plan": plan.digest,
        "plugins": {name: prepared.instances.origin(name) for name in sorted(plan.active)},
        "inference_plugins": list(plan.inference_plugins),
        "root": str(Path(prepared.recipe.root).resolve()),
        "chat": section_mapping(prepared.recipe.model.chat),
        "model": to_mapping(prepared.recipe)["model"],
        "eos": list(prepared.end_ids.eos),
        **({} if prepared.end_ids.pad is None else {"pad": prepared.end_ids.pad}),
        **extra,
    }
    modules, passthrough = build.modules(objective), {}
    for origin in prepared.pretrained:
        passthrough |= origin.passthrough(modules)
    model_folder.write(
        folder,
        merged_tensors(objective),
        config=config,
        recipe=dump(prepared.recipe),
        tokenizer=prepared.tokenizer,
        passthrough=passthrough,
        updates=lora.updates(objective),
    )


def gathered(context: RunContext, objective: Objective, stage: str) -> Objective | None:
    """Returns the objective of a stage with full weights: `objective` itself if one process trains, else a
    copy on the host of the first rank, and None on the others. Every rank must call it."""
    prepared, ranks = context.prepared, context.ranks
    if ranks.alone:
        return objective
    full = build_unsharded(context, valued=False) if ranks.first else None
    if full is not None:
        section = prepared.recipe.stages[stage]
        build.set_stage(full, prepared.plans[stage], section, seed=prepared.recipe.seed)
    fsdp.gather_to_rank0(objective, full)
    return full


def build_unsharded(context: RunContext, *, valued: bool = True) -> Objective:
    """Returns the unsharded objective; with several ranks, on the host. Without `valued` it has no values."""
    prepared = context.prepared
    return build.build_objective(
        prepared.recipe, prepared.instances.components, prepared.dims, context.device,
        pretrained=prepared.pretrained if valued else (), drawn=valued, narrow=build.frozen_narrow(prepared.recipe),
        place=None if context.ranks.alone else torch.device("cpu"),
    )  # fmt: skip


def merged_tensors(objective: Objective) -> dict[str, Tensor]:
    """Returns the tensors of a model by name, with low-rank updates merged into them."""
    merged = {f"lmm.decoder.{name}": tensor for name, tensor in lora.merged(objective.lmm.decoder).items()}
    tensors = model_folder.unique_tensors(objective)
    return {name: merged.get(name, t) for name, t in tensors.items() if f".{lora.CHILD}." not in name}
