"""The parts of which a reference has copies of its own, and these copies without values."""

from __future__ import annotations

import torch
from torch import nn

from lmmkit.build.model import modules, shell
from lmmkit.model.timm_vit import TimmViT
from lmmkit.model.transforms.frozen_bf16 import narrow_matrices
from lmmkit.objective import Objective
from lmmkit.plan.prepare import Prepared
from lmmkit.plan.pretrained import MODULES
from lmmkit.plan.stage_plan import START
from lmmkit.recipe import Recipe


def parts_of(objective: Objective) -> dict[str, nn.Module]:
    """Returns the modules of which a reference may need its own: the parts of the model, and each plugin's module
    as "plugin_<name>"."""
    return modules(objective) | {f"plugin_{name}": module for name, module in objective.plugins.items()}


def reference_parts(prepared: Prepared, stage: str) -> tuple[str, ...]:
    """Returns the parts of which the reference `start` has copies: those that the stage trains completely.

    A decoder with low-rank updates is its own reference when they are off.
    """
    plan, train = prepared.plans[stage], prepared.recipe.stages[stage].train
    if plan.reference != START:
        return ()
    parts = [part for part in MODULES if part in train.parts()]
    if train.text is not None and train.text.lora is not None:
        parts.remove("text")
    used = [strategy.name for strategy, _ in plan.strategies]
    used += [plan.reducer.name] if plan.reducer is not None else []
    return (*parts, *(f"plugin_{name}" for name in used if train.plugins is not None))


def reference_copies(prepared: Prepared, stage: str, device: torch.device) -> nn.ModuleDict:
    """Returns those copies for `device`, frozen, without values, in the dtypes of `numerics.frozen`."""
    recipe, names = prepared.recipe, reference_parts(prepared, stage)
    objective = shell(recipe, prepared.instances.components, prepared.dims, device)
    found = nn.ModuleDict({name: part for name, part in parts_of(objective).items() if name in names})
    narrow_reference(found, recipe, objective.compute)
    return found.requires_grad_(False)


def narrow_reference(parts: nn.ModuleDict, recipe: Recipe, compute: torch.dtype) -> None:
    """Rounds the matrices of a reference to bfloat16, if `numerics.frozen` says so."""
    for part in parts.values() if recipe.numerics.frozen == "bfloat16" else ():
        if not isinstance(part, TimmViT):
            narrow_matrices(part, autocast=compute != torch.float32)
