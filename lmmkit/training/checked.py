"""What a checkpoint says, held against the run: its checksums keep out accidents, not intent."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from typing import Any

from lmmkit.errors import UserError
from lmmkit.recipe import Recipe
from lmmkit.training import manifest
from lmmkit.training.checkpoint import STATE, Checkpoint
from lmmkit.training.loop import Position


def position_of(saved: Checkpoint, folder: Path, recipe: Recipe, steps: Callable[[str], int]) -> Position:
    """Where a checkpoint stands. Raises `UserError` for a place this run does not have.

    `steps`: the optimizer steps of a stage.
    """
    value: Any = saved.state.get("position") if isinstance(saved.state, dict) else None
    if isinstance(value, dict) and value.keys() == {field.name for field in fields(Position)}:
        stage, step, stage_step = (value[name] for name in ("stage", "step", "stage_step"))
        whole = type(step) is int and type(stage_step) is int
        if (
            whole
            and stage in recipe.stages
            and 0 <= stage_step <= steps(stage)
            and stage_step <= step < 10**8
        ):
            return Position(**value)
    got = f"position {str(value)[:120]}"
    raise UserError(manifest.damage(folder / STATE, f"{got}, which is none of this run's"))
