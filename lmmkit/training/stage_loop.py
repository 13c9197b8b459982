"""The training loop of one stage: takes steps, runs, checks and logs them, and saves checkpoints."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

import torch

from lmmkit import build
from lmmkit.api.batch import Step
from lmmkit.api.ctx import Moment
from lmmkit.data.loader import load_steps
from lmmkit.data.sources.bad_records import BadRecordLog
from lmmkit.errors import UserError
from lmmkit.objective import Objective
from lmmkit.progress import shown_on
from lmmkit.recipe import Recipe
from lmmkit.training.checkpoint import state_dict
from lmmkit.training.checkpoint.manifest import Frozen
from lmmkit.training.checkpoint.rng import eval_no_grad
from lmmkit.training.checkpoint.saver import Saver
from lmmkit.training.distributed.fsdp import unsharded
from lmmkit.training.monitoring import anomalies
from lmmkit.training.monitoring.anomalies import SpikeDetector
from lmmkit.training.monitoring.determinism import naming_kernel
from lmmkit.training.monitoring.empty_terms import EmptyTermCheck
from lmmkit.training.monitoring.image_logging import stage_images
from lmmkit.training.monitoring.metrics_log import MetricsLog
from lmmkit.training.monitoring.null_logger import NullLogger
from lmmkit.training.monitoring.out_of_memory import naming_memory_keys
from lmmkit.training.monitoring.stage_progress import StageProgress
from lmmkit.training.monitoring.unreached_parts import UnreachedParts
from lmmkit.training.run_context import RunContext
from lmmkit.training.signals import Interrupted, ignore_in_worker, until
from lmmkit.training.stage_data import StageData, saving
from lmmkit.training.step import BY_SOURCE, EMPTY_STEP, StepReport, rate, run_step, set_rate
from lmmkit.training.triggers import Every, Position, SaveRetry, run_due
from lmmkit.training.validation import Validator


def run_stage(
    context: RunContext, objective: Objective, optimizer: torch.optim.Optimizer, position: Position,
    state: Mapping[str, Any], frozen: Frozen | None,
) -> tuple[Position, bool]:  # fmt: skip
    """Runs the remaining steps of a stage. Saves and returns early when a stop is requested.

    `state` is the state in the checkpoint that the stage resumes from, {} at the start of a stage; `frozen`
    lists the files of its frozen weights. Returns the position, and whether the run stopped. A stop that is
    requested after the check at the last step belongs to the next stage: this stage must not save for it.
    """
    recipe, ranks, stage = context.prepared.recipe, context.ranks, position.stage
    data = StageData(context.prepared, stage, ranks)
    loop = StageLoop(
        context=context, data=data, objective=objective, optimizer=optimizer, at=position,
        spikes=SpikeDetector.of(state.get("watch")),
        empty_terms=EmptyTermCheck(data.steps, dict(state.get("idle", {}))),
        parts=UnreachedParts.of(optimizer, data.steps, objective.plugins),
        validator=Validator.of(context, data, objective, state.get("validation")),
        bad_records=data.bad_record_log(context.run.bad_records, position),
        saver=Saver(
            context.run, keep=recipe.output.keep, ranks=ranks, in_thread=recipe.output.async_save,
            frozen=state_dict.frozen(objective), before=frozen,
        ),
        progress=StageProgress(stage, data.steps, done=position.stage_step) if ranks.first else NullLogger(),
    )  # fmt: skip
    objective.train()
    build.set_layers(objective, recipe.speed)
    shown = loop.progress if isinstance(loop.progress, StageProgress) else None
    with loop.saver, loop.progress, shown_on(shown):  # `progress` has the terminal
        if recipe.speed.compile:
            loop.progress.notify(f"{stage}: compiling the layers, which makes the first steps slow")
        stopped = loop.run()
    return loop.at, stopped


@dataclass(kw_only=True)
class StageLoop:
    """Holds the state of a running stage on this rank; `at` is the current position.

    `skipped` are the bad records that the pipeline skipped and that are not yet in `bad_records`.
    """

    context: RunContext
    data: StageData
    objective: Objective
    optimizer: torch.optim.Optimizer
    at: Position
    spikes: SpikeDetector
    empty_terms: EmptyTermCheck
    parts: UnreachedParts
    validator: Validator
    bad_records: BadRecordLog
    saver: Saver
    progress: StageProgress | NullLogger
    skipped: list[Any] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.retry = SaveRetry(self.progress.notify)

    @property
    def recipe(self) -> Recipe:
        """Returns the recipe of the run."""
        return self.context.prepared.recipe

    def due(self) -> tuple[Every, ...]:
        """Returns the periodic actions, in order. Saving is last: a checkpoint means the others are done.

        The tuple is built at each call. A loop that stored its methods would be a reference cycle, and would
        keep the optimizer moments of an ended stage in memory.
        """
        output = self.recipe.output
        save = Every(output.save_every, lambda at: self.retry(at, self.write))
        return Every(output.images_every, self.draw), self.validation(), save

    def validation(self) -> Every:
        """Returns the periodic validation."""
        return Every(self.validator.every, self.validate)

    def run_due(self, entries: Iterable[Every]) -> bool:
        """Runs the actions that are due at this step. Returns False if a stop interrupts them."""
        with naming_kernel(self.where, self.recipe):
            return run_due(entries, self.at, self.data.steps)

    def save_now(self) -> None:
        """Saves before the run ends here. Raises `MachineError` if it fails."""
        self.retry.now(self.at, self.write)

    @property
    def where(self) -> str:
        """Returns the step and stage as text for a message."""
        return f"step {self.at.step}, stage {self.at.stage}"

    def run(self) -> bool:
        """Runs steps to the end of the stage or to a stop. Returns whether it stopped and saved."""
        try:
            self.validator.read()
        except Interrupted:
            self.save_now()
            return True
        stopping = False
        batches = self.batches()
        if self.at.stage_step:  # a stop may have interrupted this step's validation
            stopping = not self.run_due([self.validation()])
        clock = time.perf_counter()
        for step in batches:
            report = self.update(step)
            now = time.perf_counter()
            if self.logs:
                self.context.log(self.record(report, now - clock))
            clock = now
            self.check_anomaly(report)
            self.log_bad_records(report)
            self.count_dropped(report)
            self.empty_terms.check(report, self.at)
            for line in self.parts.check(report, self.at):
                self.progress.notify(line)
            self.progress.update(self.at.stage_step, tokens=report.tokens, loss=report.loss)
            stopping = self.context.stop_requested()  # read once: a stop must be followed by a save
            self.saver.check()
            stopping = not self.run_due(self.due()) or stopping
            if stopping:
                break
        if stopping or self.at.stage_step < self.data.steps:
            self.save_now()
            return True
        return False

    def batches(self) -> Iterable[Step]:
        """Yields the remaining steps.

        A single process ends them at a stop, and saves if reading fails. Several ranks do neither here: all
        must run the same steps, so they agree on a stop after each step.
        """
        steps = load_steps(
            self.data.pipeline, self.at.stage_step, self.data.steps, workers=self.recipe.speed.workers,
            worker_init=ignore_in_worker, on_skipped=lambda index, found: self.skipped.extend(found),
        )  # fmt: skip
        if not self.context.ranks.alone:
            return steps
        return until(self.context.stop, saving(steps, self.save_now))

    def update(self, step: Step) -> StepReport:
        """Runs one optimizer step and advances `at`."""
        recipe, before = self.recipe, self.at.stage_step
        optim, weights = recipe.stages[self.at.stage].optim, self.weights(before)
        set_rate(self.optimizer, optim, self.data.steps, before)
        self.at = Position(self.at.stage, self.at.step + 1, before + 1)
        with (
            naming_memory_keys(self.where, step, recipe, self.context.device, alone=self.context.ranks.alone),
            naming_kernel(self.where, recipe),
        ):
            return run_step(
                self.objective, self.optimizer, step, weights, clip=None if optim.clip == "none" else optim.clip,
                device=self.context.device, metrics=self.logs, ranks=self.context.ranks,
                empty=self.data.empty, each=recipe.parallel.exchange == "micro_batch",
                now=Moment(before, before / self.data.steps),
            )  # fmt: skip

    def weights(self, done: int) -> dict[str, float]:
        """Returns the weights of the terms for the update after `done` updates of the stage."""
        plan = self.context.prepared.plans[self.at.stage]
        return {name: weight.at(done / self.data.steps) for name, weight in plan.weights.items()}

    def check_anomaly(self, report: StepReport) -> None:
        """Records the anomaly of a step, if any. Raises `UserError` if there are too many."""
        found = self.spikes.detect(self.at.stage_step, report)
        if found is None:
            return
        keys = anomalies.sample_keys(self.data.pipeline, self.at.stage_step - 1)
        if self.context.ranks.first:
            kind, figures = found
            with MetricsLog(self.context.run.anomalies) as file:
                file.write(anomalies.record(self.at, kind, figures, report, keys))
            done = "; nothing was updated" if kind == "not-finite" else ""
            self.progress.notify(
                f"step {self.at.step}: {kind} {', '.join(figures)}{done} (anomalies.jsonl lists the records)"
            )
        if self.spikes.too_many(self.at.stage_step):
            self.save_now()
            self.saver.wait()
            raise UserError(anomalies.exhausted(self.where, self.spikes, report, keys))

    def count_dropped(self, report: StepReport) -> None:
        """Counts what a step left out or cut. Reports the first step that has nothing to learn from."""
        self.context.dropped.update(report.dropped)
        if report.empty and self.context.dropped[EMPTY_STEP] == 1:
            self.progress.notify(
                f"{self.where}: nothing to learn from, so nothing was updated (`dropped/...`)"
            )

    def log_bad_records(self, report: StepReport) -> None:
        """Lists the bad records of a step. Raises `UserError` if there are too many."""
        if report.dropped.get("bad_records"):
            skipped = [record for records in self.context.ranks.gather(self.skipped) for record in records]
            self.bad_records.add(self.at.stage_step - 1, skipped)
            self.skipped.clear()

    @property
    def logs(self) -> bool:
        """Returns whether the current step is logged."""
        return self.at.step % self.recipe.output.log_every == 0

    def record(self, report: StepReport, seconds: float) -> dict[str, Any]:
        """Returns the step's record for metrics.jsonl."""
        optim = self.recipe.stages[self.at.stage].optim
        chance = self.context.prepared.plans[self.at.stage].chances(self.context.prepared.dims)
        return {
            "step": self.at.step, "stage": self.at.stage, "loss": report.loss,
            **{name if name.startswith(BY_SOURCE) else f"terms/{name}": v for name, v in report.terms.items()},
            **{f"terms/{name}": value for name, value in report.metrics.items()},
            **{f"chance/{name}": value for name, value in (chance | report.chance).items()},
            **{f"weights/{name}": value for name, value in self.weights(self.at.stage_step - 1).items()},
            **{f"dropped/{reason}": n for reason, n in report.dropped.items()},
            "lr": optim.lr * rate(optim, self.data.steps, self.at.stage_step - 1), "grad_norm": report.grad_norm,
            "tokens": report.tokens, "tokens_per_second": report.tokens / seconds, "seconds": seconds,
        }  # fmt: skip

    def draw(self, at: Position) -> None:
        """Writes the images of the terms and their texts to TensorBoard."""
        with unsharded(self.objective), eval_no_grad(self.objective, self.context.device):
            drawn = stage_images(self.context.prepared, self.objective, at, self.context.device)
        self.context.board.images(at.step, drawn.images)
        self.context.board.texts(at.step, drawn.texts)

    def validate(self, at: Position) -> None:
        """Validates and logs, unless this step is already validated, as after a resume."""
        if self.validator.done != at.step:
            self.context.log(self.validator(at, self.progress.notify))

    def write(self, at: Position) -> None:
        """Saves a checkpoint."""
        state = {
            "position": asdict(at),
            "watch": self.spikes.state(),
            "idle": self.empty_terms.items,
            "validation": self.validator.state(),
            "dropped": dict(self.context.dropped),
        }
        self.saver.save(at.step, state_dict.state_tensors(self.objective, self.optimizer), state)
