"""Rules of the section `evaluate`: tasks and controls."""

from __future__ import annotations

from collections.abc import Iterator

from lmmkit.errors import Problem
from lmmkit.errors.recipe import CONFLICT
from lmmkit.recipe.rules.names import Names, check_known
from lmmkit.recipe.schema import Control, EmptyImage, Task


def check_task(task: Task, key: str, names: Names) -> Iterator[Problem]:
    """Checks that the source of a task exists, if it has one."""
    if task.data is not None:
        yield from check_known(f"{key}.data", task.data, names.data, "data")


def check_controls(controls: tuple[Control, ...], key: str, names: Names) -> Iterator[Problem]:
    """Checks that there is one image at most for the control `empty`."""
    empty = [control.empty for control in controls if isinstance(control, EmptyImage)]
    if len(set(empty)) > 1:
        expected, fix = "one image for `empty`", "Keep one of them."
        yield CONFLICT.at(key, got=" and ".join(map(ascii, empty)), expected=expected, fix=fix)
