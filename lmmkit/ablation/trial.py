"""Measures what a step of a stage costs, each arm and the base in turns: the load of the machine affects both."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from statistics import fmean, median

import torch

from lmmkit import build
from lmmkit.ablation.stage_runs import ArmOnData
from lmmkit.ablation.store import Store, measured_numbers
from lmmkit.api.batch import Step
from lmmkit.errors import LmmkitError
from lmmkit.plan.prepare import Prepared
from lmmkit.plugin_costs import Copy
from lmmkit.progress import counted
from lmmkit.runs.files import write_json_atomic
from lmmkit.training.monitoring.out_of_memory import naming_memory_keys
from lmmkit.training.step import run_step

WARM, ROUNDS = 2, 16  # steps that are not timed, and steps that are


@dataclass(frozen=True, kw_only=True)
class StepCost:
    """Holds what an optimizer step takes on average, with its data."""

    cpu_seconds: float
    wall_seconds: float
    tokens: float

    def amount(self, equal: str) -> float:
        """Returns what a comparison at equal tokens or equal time counts. Time is CPU time, or on a GPU wall time."""
        if equal == "tokens":
            return self.tokens
        return self.wall_seconds if torch.cuda.is_available() else self.cpu_seconds


class TrialStage(Copy):
    """Holds a model that is set to a stage, and times its steps with all that a run does for them."""

    def __init__(self, prepared: Prepared, stage: str, device: torch.device):
        super().__init__(prepared, stage, device)
        self.pipeline, self.length = prepared.pipeline(stage), prepared.steps(stage)
        self.cpu: list[float] = []  # seconds of each timed step
        self.wall: list[float] = []
        self.tokens = 0.0

    def run(self, step: Step) -> None:
        """Runs one optimizer step, with its metrics."""
        clip = self.section.optim.clip
        with naming_memory_keys(f"stage {self.where}", step, self.recipe, self.device, alone=True):
            run_step(
                self.objective, self.optimizer, step, self.weights, clip=None if clip == "none" else clip,
                device=self.device, metrics=True,
            )  # fmt: skip

    def step(self, number: int, *, timed: bool) -> None:
        """Makes and runs a step; with `timed` adds what it took."""
        self._wait()
        cpu, wall = time.process_time(), time.perf_counter()
        step = self.pipeline.step(number % self.length)
        self.run(step)
        self._wait()
        if timed:
            self.cpu.append(time.process_time() - cpu)
            self.wall.append(time.perf_counter() - wall)
            self.tokens += sum(len(batch) for batch in step)


def kept_costs(store: Store, arms: Sequence[ArmOnData]) -> dict[str, StepCost]:
    """Returns the cost of a step of the shapes of the arms that were measured before."""
    shapes = {shape for arm in arms for shape in _shapes(arm).values()}
    return {shape: _read(store.trial(shape)) for shape in sorted(shapes) if store.trial(shape).is_file()}


def step_costs(store: Store, arms: Sequence[ArmOnData]) -> tuple[dict[str, StepCost], dict[str, LmmkitError]]:
    """Returns the cost of a step of each shape of the arms, the base first, and by name why a variant's steps fail.

    What was measured before is read again, so that a grid which continues has the same numbers of steps. Raises the
    error of the base.
    """
    base, *others = arms
    found: dict[str, StepCost] = {}
    failed: dict[str, LmmkitError] = {}
    with _one_thread(base):
        for stage, shape in _shapes(base).items():
            found[shape] = _measured(store, shape, base, stage, None)
        pairs = {
            shape: (arm, stage)
            for arm in others
            for stage, shape in _shapes(arm).items()
            if shape not in found
        }
        for shape, (arm, stage) in counted("measuring steps", pairs.items(), len(pairs)):
            of_base = found.get(_shapes(base).get(stage, ""))
            beside = (base, of_base) if of_base is not None else None
            try:
                found[shape] = _measured(store, shape, arm, stage, beside)
            except LmmkitError as error:
                failed |= {each.arm.name: error for each in others if shape in _shapes(each).values()}
    return found, failed


def base_shapes(base: ArmOnData) -> list[str]:
    """Returns the shapes of the base, which decide what its commands cost."""
    return sorted(_shapes(base).values())


def _shapes(arm: ArmOnData) -> dict[str, str]:
    return {run.stage: run.shape for run in arm.stage_runs(0, arm.steps)}


def _measured(
    store: Store, shape: str, arm: ArmOnData, stage: str, beside: tuple[ArmOnData, StepCost] | None
) -> StepCost:
    path = store.trial(shape)
    if path.is_file():
        return _read(path)
    device = build.device_here()
    own = TrialStage(arm.prepared, stage, device)
    other = TrialStage(beside[0].prepared, stage, device) if beside is not None else None
    turns = [own] if other is None else [own, other]
    for number in range(WARM + ROUNDS):
        for each in turns[:: 1 if number % 2 else -1]:
            each.step(number, timed=number >= WARM)
    if other is None or beside is None:
        cost = StepCost(cpu_seconds=fmean(own.cpu), wall_seconds=fmean(own.wall), tokens=own.tokens / ROUNDS)
    else:
        of_base = beside[1]
        cost = StepCost(
            cpu_seconds=of_base.cpu_seconds * _ratio(own.cpu, other.cpu),
            wall_seconds=of_base.wall_seconds * _ratio(own.wall, other.wall), tokens=own.tokens / ROUNDS,
        )  # fmt: skip
    path.parent.mkdir(parents=True, exist_ok=True)
    write_json_atomic(path, asdict(cost))
    return cost


def _ratio(own: Sequence[float], other: Sequence[float]) -> float:
    """Returns the median ratio of the steps of one turn: a few that others held up do not count."""
    return median(a / b for a, b in zip(own, other, strict=True))


def _read(path: Path) -> StepCost:
    names = [each.name for each in fields(StepCost)]
    return StepCost(**measured_numbers(path, names, above_zero=True))


def equal_steps(
    equal: str, base: ArmOnData, arm: ArmOnData, costs: Mapping[str, StepCost]
) -> dict[str, int] | None:
    """Returns the steps of each stage of an arm; None if they depend on a cost that is not known.

    At equal tokens or time, a stage gets as many steps as cost what the base's stage of that name costs; a stage that
    the base does not have keeps its own.
    """
    if equal == "steps":
        return dict(arm.steps)
    of_base, of_arm, found = _shapes(base), _shapes(arm), {}
    for stage, steps in arm.steps.items():
        if stage in of_base and of_base[stage] != of_arm[stage]:
            if not costs.keys() >= {of_base[stage], of_arm[stage]}:
                return None
            ratio = costs[of_base[stage]].amount(equal) / costs[of_arm[stage]].amount(equal)
            steps = max(1, round(base.steps[stage] * ratio))
        elif stage in of_base:
            steps = base.steps[stage]
        found[stage] = steps
    return found


@contextmanager
def _one_thread(base: ArmOnData) -> Iterator[None]:
    """Computes with as many threads as the commands of a grid."""
    before = torch.get_num_threads()
    torch.set_num_threads(base.recipe.speed.threads or 1)
    try:
        yield
    finally:
        torch.set_num_threads(before)
