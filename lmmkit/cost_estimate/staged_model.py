"""The model of a stage without weights, whose parameters are counted."""

from __future__ import annotations

from collections.abc import Mapping

from torch import nn

from lmmkit import build
from lmmkit.objective import Objective
from lmmkit.plan.prepare import Prepared


def staged(prepared: Prepared, stage: str) -> tuple[Objective, dict[str, list[nn.Parameter]]]:
    """Returns the objective on the meta device, set to a stage, and the trainable parameters by part."""
    recipe = prepared.recipe
    objective = build.shell(recipe, prepared.instances.components, prepared.dims, build.device_here())
    build.narrow_parts(objective, build.frozen_narrow(recipe))
    return objective, build.set_stage(
        objective, prepared.plans[stage], recipe.stages[stage], seed=recipe.seed
    )


def all_parameters(trainable: Mapping[str, list[nn.Parameter]]) -> list[nn.Parameter]:
    """Returns the parameters of all parts."""
    return [p for parameters in trainable.values() for p in parameters]
