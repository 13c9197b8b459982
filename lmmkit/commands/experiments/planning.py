"""Opens the data of a grid, makes its runs, and measures how long they take; in a process of its own (`apart.py`)."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from lmmkit.ablation.forecast import Forecast, forecast
from lmmkit.commands.support.common import err
from lmmkit.commands.support.progress_display import display_on
from lmmkit.errors import LmmkitError
from lmmkit.progress import counted, shown_on, working

if TYPE_CHECKING:
    from lmmkit.ablation.arms import Arm
    from lmmkit.ablation.grid import GridFile
    from lmmkit.ablation.planned_runs import GridRun
    from lmmkit.ablation.stage_runs import ArmOnData
    from lmmkit.ablation.store import Store
    from lmmkit.ablation.trial import StepCost
    from lmmkit.errors import Problem

ToMeasure = Literal["nothing", "lengths", "all"]
"""What is measured that is not kept: nothing; what the lengths of runs need; also what the forecast needs."""


@dataclass(frozen=True, kw_only=True)
class Planned:
    """Holds the runs of a grid and how long what is left takes.

    `side`: how many commands run at once. `forecast`: None if something that it needs is not measured. `failed`: why
    variants are left out, by name. `unmeasured`: arms without runs, as their lengths are not measured.
    """

    runs: tuple[GridRun, ...]
    side: int
    forecast: Forecast | None
    failed: Mapping[str, LmmkitError]
    unmeasured: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class Options:
    """Holds the options of the command that planning needs."""

    trust_files: bool
    quiet: bool


def plan_grid(
    file: GridFile, arms: Sequence[Arm], store: Store, jobs: int | None, measure: ToMeasure, options: Options
) -> Planned:
    """Returns the runs of a grid, with their lengths, and the forecast of what is left."""
    with shown_on(display_on(err, quiet=options.quiet)):
        return _planned(file, arms, store, jobs, measure, trust_files=options.trust_files)


def _planned(
    file: GridFile, arms: Sequence[Arm], store: Store, jobs: int | None, measure: ToMeasure, *, trust_files: bool
) -> Planned:  # fmt: skip
    load = os.getloadavg()[0]  # before this process adds to it
    with working("importing torch"):
        from lmmkit.ablation.trial import kept_costs, step_costs
        from lmmkit.commands.experiments.grid_work import left_over, steps_behind
        from lmmkit.commands.experiments.process_trial import kept_process_cost, process_cost

    on_data = _opened(file, arms, trust_files)
    first, side = on_data[: len(arms)], jobs or _cores()
    costs, failed = kept_costs(store, first), dict[str, LmmkitError]()
    by_measured_lengths = file.grid.equal != ("steps",)
    if by_measured_lengths and measure != "nothing":
        costs, failed = step_costs(store, first)
    runs, unmeasured = _runs(file, on_data, first, costs, failed)
    if not unmeasured and not failed and not left_over(store, runs):
        left = Forecast((), side)
        return Planned(runs=runs, side=side, forecast=left, failed={}, unmeasured=())
    if not by_measured_lengths and measure == "all":
        costs, failed = step_costs(store, first)
        runs = tuple(run for run in runs if run.arm not in failed)
    process = kept_process_cost(store, first[0])
    if process is None and measure == "all":
        process = process_cost(store, first[0], costs, load=load, trust_files=trust_files)
    left = None
    if process is not None and all(stage.shape in costs for run in runs for stage in run.stages):
        sizes = {
            each.recipe.root: {name: len(records) for name, records in each.prepared.sources.items()}
            for each in on_data
        }
        left = forecast(store, runs, costs, process, sizes, steps_behind(store, runs), side, load=load)
    return Planned(runs=runs, side=side, forecast=left, failed=failed, unmeasured=unmeasured)


def _runs(
    file: GridFile, on_data: Sequence[ArmOnData], first: Sequence[ArmOnData], costs: Mapping[str, StepCost],
    failed: Mapping[str, LmmkitError],
) -> tuple[tuple[GridRun, ...], tuple[str, ...]]:  # fmt: skip
    """Returns the runs of the arms that have not failed, and the arms whose lengths are not known."""
    from lmmkit.ablation.stage_runs import grid_runs
    from lmmkit.ablation.trial import equal_steps

    branch = file.grid.branch
    times, after = (branch.times, branch.after) if branch is not None else (1, None)
    runs: list[GridRun] = []
    unmeasured: list[str] = []
    for equal in file.grid.equal:
        lengths = {arm.arm.name: equal_steps(equal, first[0], arm, costs) for arm in first}
        steps = {name: each for name, each in lengths.items() if each is not None and name not in failed}
        unmeasured += [f"{name} (equal {equal})" for name in lengths if name not in {*steps, *failed}]
        there = [each for each in on_data if each.arm.name in steps]
        runs += grid_runs(there, file.grid.seeds, equal=equal, steps=steps, branches=times, after=after)
    return tuple(runs), tuple(unmeasured)


def _opened(file: GridFile, arms: Sequence[Arm], trust_files: bool) -> list[ArmOnData]:
    """Opens each arm on each root: all arms of the first root, then of the next. Raises `UserError` with all problems,
    also for variants that a plan shows to train like another one."""
    from lmmkit.ablation.arms import equal_problems
    from lmmkit.ablation.stage_runs import ArmOnData
    from lmmkit.errors import Tried, raise_all, raise_together

    asked = [(arm, Path(root)) for root in file.grid.root for arm in arms]
    tried = [
        Tried(lambda arm=arm, root=root: ArmOnData(arm, root, trust_files=trust_files))
        for arm, root in counted("opening arms and data", asked)
    ]
    raise_together(tried)
    found = [each.value for each in tried]
    keys = [each.stage_runs(0, each.steps)[-1].key for each in found]
    n = len(arms)
    problems = [
        *equal_problems(list(zip(arms, keys[:n], strict=True))), *_equal_roots(file, keys[::n]),
        *_unlike_questions(found),
    ]  # fmt: skip
    raise_all(replace(problem, where=file.places.where(problem.where)) for problem in problems)
    return found


def _equal_roots(file: GridFile, keys: Sequence[str]) -> Iterator[Problem]:
    """Yields a problem for each root whose data are those of an earlier one: their runs would be the same, and count
    twice. `keys`: of the base on each root."""
    from lmmkit.errors.ablation import EQUAL_ROOTS

    for i, key in enumerate(keys):
        if key in keys[:i]:
            first, second = (file.grid.root[j] for j in (keys.index(key), i))
            yield EQUAL_ROOTS.at(f"root.{i}", got=f"`{second}`, with the same data as `{first}`")


def _unlike_questions(opened: Sequence[ArmOnData]) -> Iterator[Problem]:
    """Yields a problem for each task of an arm that asks other questions than the first arm with that task on the same
    root: their figures could not be compared. Of benchmarks, whose questions are in other files, none."""
    from lmmkit.errors.ablation import UNLIKE_QUESTIONS

    first: dict[tuple[str, str], ArmOnData] = {}
    for each in opened:
        for task in each.asked():
            other = first.setdefault((each.recipe.root, task), each)
            if not each.asks_like(other, task):
                got = f"`{each.arm.name}`, task {task}: {each.asked_in_words(task)}"
                expected = other.asked_in_words(task)
                yield UNLIKE_QUESTIONS.at(each.arm.where, got=got, other=other.arm.name, expected=expected)


def _cores() -> int:
    """Returns how many commands run at once: one a core, or one on a GPU."""
    import torch

    return 1 if torch.cuda.is_available() else len(os.sched_getaffinity(0))
