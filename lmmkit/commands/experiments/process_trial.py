"""Measures what the commands of a grid take beside their steps, by running them once on very little."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Mapping
from dataclasses import asdict, replace
from itertools import islice
from pathlib import Path

import typer

from lmmkit.ablation.arms import Arm
from lmmkit.ablation.forecast import ProcessCost, seconds_alone
from lmmkit.ablation.stage_runs import ArmOnData, grid_runs
from lmmkit.ablation.store import Store, measured_numbers
from lmmkit.ablation.trial import StepCost, base_shapes
from lmmkit.commands.experiments.grid_work import EvaluateRun, TrainStage, work_of
from lmmkit.commands.experiments.job_queue import run_queue
from lmmkit.commands.support.common import err
from lmmkit.progress import working
from lmmkit.recipe import Recipe, Task
from lmmkit.runs.files import write_json_atomic

STEPS, SAMPLES = 2, 48  # of each stage, and of each task


def process_cost(
    store: Store, base: ArmOnData, steps: Mapping[str, StepCost], *, load: float, trust_files: bool = False
) -> ProcessCost:
    """Returns the cost of the commands of the base. What was measured before is read again. `load`: how many other
    processes want a core.

    Raises:
        typer.Exit: if a command fails; its log is printed.
    """
    if (known := kept_process_cost(store, base)) is not None:
        return known
    path = _path(store, base)
    aside = Store(path.with_suffix(""))
    small = ArmOnData(
        Arm(base.arm.name, base.arm.where, _small(base)), Path(base.recipe.root), trust_files=trust_files
    )
    runs = grid_runs([small], [0], equal="steps", steps={base.arm.name: dict.fromkeys(base.steps, STEPS)})
    work = work_of(aside, runs, trust_files=trust_files)
    with working("measuring the commands", len(work)) as move:
        failed = run_queue(work, 1, lambda _, ended: move(len(ended)))
    if failed:
        first = next(iter(failed.values()))
        err.print(Path(first.reason).read_text(errors="replace"))
        raise typer.Exit(first.code)
    (run,) = runs
    cpu, wall = (sum(getattr(each.took, name) for each in work) for name in ("cpu_seconds", "wall_seconds"))
    trained = [each for each in work if isinstance(each, TrainStage)]
    beside = [each.took.cpu_seconds - STEPS * steps[each.stage.shape].cpu_seconds for each in trained]
    (evaluation,) = (each.took for each in work if isinstance(each, EvaluateRun))
    results = aside.run(run.key).read_results()
    ratio = evaluation.cpu_seconds / max(evaluation.wall_seconds, 1e-9)
    found = ProcessCost(
        train=max(0.0, sum(beside) / len(beside)),
        evaluate=max(0.0, evaluation.cpu_seconds - ratio * sum(results[task]["seconds"] for task in run.questions)),
        tasks={task: ratio * results[task]["seconds"] / _count(results[task]) for task in run.questions},
        wall=seconds_alone(cpu=cpu, wall=wall, load=load, threads=base.recipe.speed.threads or 1),
    )  # fmt: skip
    write_json_atomic(path, asdict(found))
    shutil.rmtree(aside.root)
    return found


def kept_process_cost(store: Store, base: ArmOnData) -> ProcessCost | None:
    """Returns the cost of the commands of the base if it was measured before."""
    path = _path(store, base)
    if not path.is_file():
        return None
    tasks = measured_numbers(path, base.questions(), section="tasks")
    return ProcessCost(tasks=tasks, **measured_numbers(path, ("train", "evaluate", "wall")))


def _path(store: Store, base: ArmOnData) -> Path:
    work = json.dumps([base_shapes(base), base.questions()])
    return store.trial(f"commands-{hashlib.sha256(work.encode()).hexdigest()[:12]}")


def _count(results: Mapping) -> int:
    """Returns the number of samples of a task, from its figures."""
    numbers = [figure["n"] for figure in results.values() if isinstance(figure, dict) and "n" in figure]
    return min(SAMPLES, max(numbers, default=1)) or 1


def _small(base: ArmOnData) -> Recipe:
    """Returns the recipe of the base with few samples, and answers of the length that right ones have: an untrained
    model does not end them."""
    recipe = base.recipe
    if recipe.evaluate is None:
        return recipe
    tasks = {name: _small_task(base, task) for name, task in recipe.evaluate.tasks.items()}
    return replace(recipe, evaluate=replace(recipe.evaluate, tasks=tasks))


def _small_task(base: ArmOnData, task: Task) -> Task:
    samples = SAMPLES if task.samples == "all" else min(SAMPLES, task.samples)
    if task.data is None or task.max_new_tokens is None:
        return replace(task, samples=samples)
    records = islice(base.prepared.sources[task.data], SAMPLES)
    longest = max(len(base.prepared.tokenizer.encode(record.turns[-1].text)) for record in records)
    return replace(task, samples=samples, max_new_tokens=min(task.max_new_tokens, longest + 1))
