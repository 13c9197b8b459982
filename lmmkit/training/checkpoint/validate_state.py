"""Checks of the state in a checkpoint against the run: checksums detect accidents, not intent."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from typing import Any

from lmmkit.errors import UserError
from lmmkit.errors.training import DAMAGED
from lmmkit.recipe import Recipe
from lmmkit.training.checkpoint.read import STATE, Checkpoint
from lmmkit.training.triggers import Position


def state_of(
    saved: Checkpoint, recipe: Recipe, steps: Callable[[str], int]
) -> tuple[Position, dict[str, Any]]:
    """Returns the position of a checkpoint, and the state that the stage's loop stored in it.

    Raises `UserError` for a position that this run does not have, and for state that lmmkit does not write.
    `steps` returns the optimizer steps of a stage.
    """
    state: Any = saved.state if isinstance(saved.state, dict) else {}
    file = saved.path / STATE
    wrong = [name for name, fits in _CHECKS.items() if name in state and not fits(state[name])]
    if wrong:
        got = f"{wrong[0]} {str(state[wrong[0]])[:120]}, which lmmkit does not write"
        raise UserError(DAMAGED.at(str(file), got=got))
    return _position(state.get("position"), file, recipe, steps), state


def _position(value: Any, file: Path, recipe: Recipe, steps: Callable[[str], int]) -> Position:
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
    got = f"position {str(value)[:120]}, which this run does not have"
    raise UserError(DAMAGED.at(str(file), got=got))


def _watch(value: Any) -> bool:
    return (
        isinstance(value, dict)
        and value.keys() == {"losses", "norms", "skipped"}
        and all(isinstance(each, list) for each in value.values())
        and all(type(x) is float for x in value["losses"] + value["norms"])
        and all(type(n) is int for n in value["skipped"])
    )


def _counts(value: Any) -> bool:
    return isinstance(value, dict) and all(type(n) is int for n in value.values())


def _validation(value: Any) -> bool:
    return (
        isinstance(value, dict)
        and value.keys() == {"done", "best"}
        and type(value["done"]) is int
        and (value["best"] is None or type(value["best"]) is float)
    )


_CHECKS: dict[str, Callable[[Any], bool]] = {
    "watch": _watch, "idle": _counts, "dropped": _counts, "validation": _validation,
}  # fmt: skip
