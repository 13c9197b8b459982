"""The checks before a run that need no run folder; `lmmkit check` and `lmmkit train` run the same ones."""

from __future__ import annotations

from collections.abc import Iterable

import torch

from lmmkit import build
from lmmkit.errors import Problem, Tried, raise_all, raise_together
from lmmkit.errors.training import NO_START
from lmmkit.evaluate.kinds import task_problems
from lmmkit.optimizers import check_optimizers
from lmmkit.plan.map_sizes import map_problems
from lmmkit.plan.prepare import Prepared, prepare
from lmmkit.plan.reference_checks import reference_problems, teacher_model_problems
from lmmkit.recipe import Recipe
from lmmkit.training.distributed.fsdp import check_world
from lmmkit.training.distributed.process_group import ALONE, Ranks
from lmmkit.training.main_guard import check_main_guard
from lmmkit.training.validation import validate_problems


def preflight(
    recipe: Recipe, *, trust_files: bool = False, data: Iterable[str] | None = None, ranks: Ranks = ALONE
) -> tuple[Prepared, torch.device]:
    """Returns the prepared recipe and the device of this process, after every check.

    Args:
        recipe: a recipe as `read_recipe` returns it.
        trust_files: run plugins from local files.
        data: names of the sources to open. Default: those of all stages and their validations.
        ranks: the processes that are to train.

    Raises:
        UserError: with all problems of recipe, data, plugins, plans, tasks and machine, except those that
            can only be found after others are solved.
        MachineError: if all of them are problems of the machine.
    """
    device = build.device_here()
    prepared = Tried(lambda: prepare(recipe, trust_files=trust_files, data=data))
    early = Tried(lambda: build.backend(recipe, device))  # before the sizes of folders are known
    backend = Tried(lambda: build.backend(prepared.value.recipe, device), prepared, early)
    raise_together((
        Tried(lambda: check_world(recipe, ranks)),
        Tried(lambda: check_main_guard(recipe)),
        prepared,
        Tried(lambda: raise_all(task_problems(recipe))),
        Tried(lambda: raise_all(validate_problems(prepared.value)), prepared),
        *(Tried(lambda stage=stage: prepared.value.pipeline(stage), prepared) for stage in recipe.stages),
        Tried(lambda: check_optimizers(recipe)),
        Tried(lambda: build.check_compiler(recipe, device)),
        early,
        backend,
        Tried(lambda: _check_pretrained(prepared.value, device), prepared, backend),
        Tried(lambda: build.check_teachers(prepared.value), prepared),
        Tried(lambda: raise_all(reference_problems(prepared.value)), prepared),
        Tried(lambda: raise_all(teacher_model_problems(prepared.value)), prepared),
        Tried(lambda: raise_all(map_problems(prepared.value)), prepared),
    ))  # fmt: skip
    return prepared.value, device


def start_problems(recipe: Recipe) -> list[Problem]:
    """Returns a problem for each model that a stage starts from and that does not exist.

    A folder `model/STAGE` of an earlier stage is left out: the run may write it before it reads it.
    """
    problems, before = [], set[str]()
    for name, stage in recipe.stages.items():
        folder = None if stage.start is None else recipe.path(stage.start)
        of_this_run = folder is not None and folder.parent.name == "model" and folder.name in before
        if folder is not None and not of_this_run and not (folder / "config.json").is_file():
            where = recipe.where(f"stages.{name}.start")
            problems.append(NO_START.at(where, got=f"no model in {folder}", stage=name))
        before.add(name)
    return problems


def _check_pretrained(prepared: Prepared, device: torch.device) -> None:
    build.check_pretrained(prepared.recipe, prepared.dims, prepared.pretrained, device)
