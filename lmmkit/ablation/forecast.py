"""How long a grid takes: from steps that were measured, and from a short run of the commands themselves."""

from __future__ import annotations

import heapq
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from lmmkit.ablation.planned_runs import GridRun, StageRun, unique_stages
from lmmkit.ablation.store import Store
from lmmkit.recipe import Recipe

if TYPE_CHECKING:
    from lmmkit.ablation.trial import StepCost

FORWARD = 0.4  # the share of a step that its forward pass takes


@dataclass(frozen=True, kw_only=True)
class ProcessCost:
    """Holds the CPU seconds that the commands `train` and `eval` take beside their work, and those of a sample of each
    task. `wall`: seconds for a CPU second, on a core of its own."""

    train: float
    evaluate: float
    tasks: Mapping[str, float]
    wall: float

    def of_tasks(self, counts: Mapping[str, int]) -> float:
        """Returns the CPU seconds of tasks on so many samples. A task that was not tried costs as others do."""
        mean = sum(self.tasks.values()) / max(1, len(self.tasks))
        return sum(self.tasks.get(name, mean) * count for name, count in counts.items())


@dataclass(frozen=True)
class LeftCommand:
    """Describes one command that is left: its CPU seconds, and what it waits for."""

    name: str
    seconds: float
    after: tuple[str, ...] = ()


@dataclass(frozen=True)
class Forecast:
    """Holds the commands that are left, and the seconds they take with so many side by side.

    `wall`: seconds for a CPU second, if nothing else runs. `load`: how much longer at the load of the start.
    """

    items: tuple[LeftCommand, ...]
    side: int
    wall: float = 1.0
    load: float = 1.0

    @property
    def cpu_seconds(self) -> float:
        """Returns the CPU seconds of all commands."""
        return sum(item.seconds for item in self.items)

    @property
    def idle_seconds(self) -> float:
        """Returns the time until the last one has ended, on a machine that does nothing else."""
        return self.wall * makespan(self.items, self.side)

    @property
    def wall_seconds(self) -> float:
        """Returns the time until the last one has ended, if the load stays as it is."""
        return self.load * self.idle_seconds


def forecast(
    store: Store, runs: Sequence[GridRun], steps: Mapping[str, StepCost], process: ProcessCost,
    sizes: Mapping[str, Mapping[str, int]], done: Mapping[str, int], side: int, load: float = 0.0,
) -> Forecast:  # fmt: skip
    """Returns the forecast of what is left of a grid.

    Args:
        store: where the runs are.
        runs: the runs of the grid.
        steps: the cost of a step, by shape.
        process: the cost of the commands.
        sizes: the records of each source, by root.
        done: the steps that unfinished stages have behind them, by key.
        side: how many commands run at once.
        load: how many other processes want a core.
    """
    known = _known(store, list(unique_stages(runs).values()), process.train)
    items: dict[str, LeftCommand] = {}
    for run in runs:
        for stage in run.stages:
            name = train_name(stage.key)
            if name in items or store.is_trained(stage):
                continue
            each = known.get(stage.shape)
            if each is None:
                step = steps[stage.shape]
                each = step.cpu_seconds + _validation(stage, step, process, sizes[run.root])
            left = process.train + each * (stage.steps - done.get(stage.key, 0))
            before = train_name(stage.before.key) if stage.before is not None else ""
            items[name] = LeftCommand(name, left, (before,) if before in items else ())
        name, missing = eval_name(run.key), store.missing_tasks(run)
        if missing and name not in items:
            counts = task_counts(run.last.recipe, sizes[run.root])
            left = process.evaluate + process.of_tasks({task: counts[task] for task in missing})
            before = train_name(run.key)
            items[name] = LeftCommand(name, left, (before,) if before in items else ())
    alone = slowed(side)
    return Forecast(tuple(items.values()), side, process.wall * alone, slowed(load + side) / alone)


def slowed(processes: float) -> float:
    """Returns how much longer a process takes if so many share the cores."""
    return max(1.0, processes / len(os.sched_getaffinity(0)))


def seconds_alone(*, cpu: float, wall: float, load: float, threads: int) -> float:
    """Returns the seconds for a CPU second that a process would have needed on a core for each of its threads.

    It took `wall` seconds beside `load` others. Not below 1 / `threads`, since a process with a higher priority than
    the others was not held up as `load` says.
    """
    return max(1 / threads, wall / max(cpu, 1e-9) / slowed(load + 1))


def train_name(key: str) -> str:
    """Returns the name of the command that trains a stage."""
    return f"{key} train"


def eval_name(key: str) -> str:
    """Returns the name of the command that evaluates a run."""
    return f"{key} eval"


def _known(store: Store, stages: Sequence[StageRun], beside: float) -> dict[str, float]:
    """Returns the CPU seconds of a step of shapes that were trained already. `beside`: what a command takes anyway."""
    found: dict[str, list[float]] = {}
    for stage in stages:
        if store.is_trained(stage) and (took := store.cpu_seconds(stage)) is not None:
            found.setdefault(stage.shape, []).append(max(0.0, took - beside) / stage.steps)
    return {shape: sum(each) / len(each) for shape, each in found.items()}


def _validation(stage: StageRun, step: StepCost, process: ProcessCost, sizes: Mapping[str, int]) -> float:
    """Returns the CPU seconds of validation for each step of a stage."""
    section = stage.recipe.stages[stage.stage]
    if (asked := section.validate) is None:
        return 0.0
    there = sizes.get(asked.data, 0)
    number = there if asked.samples == "all" else min(there, asked.samples)
    forward = FORWARD * step.cpu_seconds * number / section.batch.samples
    counts = task_counts(stage.recipe, sizes)
    return (forward + process.of_tasks({name: counts[name] for name in asked.tasks})) / asked.every


def makespan(items: Sequence[LeftCommand], side: int) -> float:
    """Returns when the last item has ended if `side` of them run at once, each as soon as it can."""
    ends: dict[str, float] = {}
    waiting, now, running = list(items), 0.0, list[tuple[float, str]]()
    while waiting or running:
        ready = [item for item in waiting if all(name in ends for name in item.after)]
        for item in ready[: side - len(running)]:
            waiting.remove(item)
            heapq.heappush(running, (now + item.seconds, item.name))
        assert running, "an item waits for one that is not there"
        now = running[0][0]
        while running and running[0][0] == now:
            ends[heapq.heappop(running)[1]] = now
    return now


def task_counts(recipe: Recipe, sizes: Mapping[str, int]) -> dict[str, int]:
    """Returns the number of samples of each evaluation task; of benchmarks, whose items are in other files, 0."""
    tasks = recipe.evaluate.tasks if recipe.evaluate is not None else {}
    found = {}
    for name, task in tasks.items():
        there = sizes.get(task.data or "", 0)
        found[name] = there if task.samples == "all" else min(there, task.samples)
    return found
