"""The training loop of one stage: takes steps, runs, checks and logs them, and saves checkpoints."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

import torch

from lmmkit import build
from lmmkit.api.batch import Batch, Step
from lmmkit.data.loader import load_steps
from lmmkit.data.pipeline import Pipeline
from lmmkit.data.sources.bad_records import BadRecordLog
from lmmkit.errors import UserError
from lmmkit.objective import Objective
from lmmkit.plan.prepare import Prepared
from lmmkit.runs.run_folder import RunFolder
from lmmkit.training.checkpoint import state_dict
from lmmkit.training.checkpoint.manifest import Frozen
from lmmkit.training.checkpoint.rng import eval_no_grad
from lmmkit.training.checkpoint.saver import Saver
from lmmkit.training.distributed.fsdp import unsharded
from lmmkit.training.distributed.process_group import Ranks
from lmmkit.training.monitoring import anomalies
from lmmkit.training.monitoring.anomalies import SpikeDetector
from lmmkit.training.monitoring.determinism import telling_kernel
from lmmkit.training.monitoring.empty_terms import EmptyTermCheck
from lmmkit.training.monitoring.image_logging import stage_pictures
from lmmkit.training.monitoring.metrics_log import Board, MetricsLog, NullLogger, Progress
from lmmkit.training.monitoring.out_of_memory import telling_room
from lmmkit.training.signals import Interrupted, Stop, ignore_in_worker, until
from lmmkit.training.stage_data import saving, stage_ledger, stage_pipeline
from lmmkit.training.step import BY_SOURCE, StepReport, rate, run_step, set_rate
from lmmkit.training.triggers import Every, Position, SaveRetry, run_due
from lmmkit.training.validation import Validator, asked


def run_stage(
    prepared: Prepared, objective: Objective, optimizer: torch.optim.Optimizer, position: Position,
    run: RunFolder, metrics: MetricsLog | NullLogger, board: Board | NullLogger, stop: Stop,
    device: torch.device, ranks: Ranks, before: Mapping[str, Any],
    frozen: Frozen | None,
) -> tuple[Position, bool]:  # fmt: skip
    """Runs the remaining steps of a stage. Saves and returns early when a stop is requested.

    `before` is the state in the checkpoint that the stage resumes from, {} at the start of a stage; `frozen`
    lists the files of its frozen weights. Returns the position, and whether the run stopped. A stop that is
    requested after the check at the last step belongs to the next stage: this stage must not save for it.
    """
    stage, steps, output = position.stage, prepared.steps(position.stage), prepared.recipe.output
    pipeline = stage_pipeline(prepared, stage, ranks)
    validator = Validator.of(prepared, objective, stage, device, stop, ranks, before.get("validation"))
    loop = Loop(
        prepared=prepared, objective=objective, optimizer=optimizer, at=position, steps=steps, run=run, metrics=metrics,
        board=board, stop=stop, device=device, ranks=ranks, pipeline=pipeline,
        empty=None if ranks.alone else pipeline.packer.pack([], {})[0],
        watch=SpikeDetector.of(before.get("watch")), idle=EmptyTermCheck(steps, dict(before.get("idle", {}))),
        validator=validator, ledger=stage_ledger(pipeline, position, run, ranks),
        saver=Saver(
            run, keep=output.keep, ranks=ranks, beside=output.async_save, frozen=state_dict.frozen(objective),
            before=frozen,
        ),
        progress=Progress(stage, steps, done=position.stage_step) if ranks.first else NullLogger(),
    )  # fmt: skip
    objective.train()
    build.set_layers(objective, prepared.recipe.speed)
    with loop.saver, loop.progress:
        if prepared.recipe.speed.compile:
            loop.progress.notify(f"{stage}: compiling the layers, which makes the first steps slow")
        stopped = loop.go()
    return loop.at, stopped


@dataclass(kw_only=True)
class Loop:
    """Holds the state of a running stage on this rank; `at` is the current position.

    `empty` is the micro-batch that a rank runs while other ranks have micro-batches left. `passed` are the
    bad records that the pipeline skipped and that are not yet in `ledger`.
    """

    prepared: Prepared
    objective: Objective
    optimizer: torch.optim.Optimizer
    at: Position
    steps: int
    run: RunFolder
    metrics: MetricsLog | NullLogger
    board: Board | NullLogger
    stop: Stop
    device: torch.device
    ranks: Ranks
    pipeline: Pipeline
    empty: Batch | None
    watch: SpikeDetector
    idle: EmptyTermCheck
    validator: Validator
    ledger: BadRecordLog
    saver: Saver
    progress: Progress | NullLogger
    passed: list[Any] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.patience = SaveRetry(self.progress.notify)

    def due(self) -> tuple[Every, ...]:
        """Returns the periodic actions, in order. Saving is last: a checkpoint means the others are done.

        The tuple is built at each call. A loop that stored its methods would be a reference cycle, and would
        keep the optimizer moments of an ended stage in memory.
        """
        output = self.prepared.recipe.output
        save = Every(output.save_every, lambda at: self.patience(at, self.write))
        return Every(output.images_every, self.draw), self.validation(), save

    def validation(self) -> Every:
        """Returns the periodic validation."""
        return Every(self.validator.every, self.validate)

    def run_due(self, entries: Iterable[Every]) -> bool:
        """Runs the actions that are due at this step. Returns False if a stop interrupts them."""
        with telling_kernel(self.where, self.prepared.recipe):
            return run_due(entries, self.at, self.steps)

    def save_now(self) -> None:
        """Saves before the run ends here. Raises `MachineError` if it fails."""
        self.patience.now(self.at, self.write)

    @property
    def where(self) -> str:
        """Returns the step and stage as text for a message."""
        return f"step {self.at.step}, stage {self.at.stage}"

    def go(self) -> bool:
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
                self.log(self.record(report, now - clock))
            clock = now
            self.look(report)
            self.idle.check(report, self.at)
            self.progress.update(self.at.stage_step, tokens=report.tokens, loss=report.loss)
            stopping = asked(self.stop, self.ranks) > 0  # read once: a stop must be followed by a save
            self.saver.check()
            stopping = not self.run_due(self.due()) or stopping
            if stopping:
                break
        if stopping or self.at.stage_step < self.steps:
            self.save_now()
            return True
        return False

    def batches(self) -> Iterable[Step]:
        """Yields the remaining steps.

        A single process ends them at a stop, and saves if reading fails. Several ranks do neither here: all
        must run the same steps, so they agree on a stop after each step.
        """
        steps = load_steps(
            self.pipeline, self.at.stage_step, self.steps, workers=self.prepared.recipe.speed.workers,
            worker_init=ignore_in_worker, on_skipped=lambda index, found: self.passed.extend(found),
        )  # fmt: skip
        if not self.ranks.alone:
            return steps
        return until(self.stop, saving(steps, self.save_now))

    def update(self, step: Step) -> StepReport:
        """Runs one optimizer step and advances `at`."""
        recipe, before = self.prepared.recipe, self.at.stage_step
        optim, plan = recipe.stages[self.at.stage].optim, self.prepared.plans[self.at.stage]
        set_rate(self.optimizer, optim, self.steps, before)
        weights = {name: w.at(before / self.steps) for name, w in plan.weights.items()}
        self.at = Position(self.at.stage, self.at.step + 1, before + 1)
        with telling_room(self.where, step, recipe, self.device), telling_kernel(self.where, recipe):
            return run_step(
                self.objective, self.optimizer, step, weights, clip=None if optim.clip == "none" else optim.clip,
                device=self.device, metrics=self.logs, ranks=self.ranks,
                empty=self.empty, each=recipe.parallel.exchange == "micro_batch",
            )  # fmt: skip

    def look(self, report: StepReport) -> None:
        """Records the anomaly of a step, if any, and its bad records.

        Raises `UserError` if there are too many of either.
        """
        index = self.at.stage_step - 1
        if (seen := self.watch.see(self.at.stage_step, report)) is not None:
            rows = anomalies.rows_of(self.pipeline, index)
            if self.ranks.first:
                self.record_anomaly(seen, report, rows)
            if self.watch.too_many(self.at.stage_step):
                self.save_now()
                self.saver.wait()
                raise UserError(anomalies.exhausted(self.at.step, self.at.stage, self.watch, report, rows))
        if report.dropped.get("bad_records"):
            self.ledger.add(index, [row for rows in self.ranks.gather(self.passed) for row in rows])
            self.passed.clear()

    def record_anomaly(
        self, seen: tuple[str, list[str]], report: StepReport, rows: Mapping[str, list[str]]
    ) -> None:
        """Writes an anomalous step and its sample keys to anomalies.jsonl, and prints a notice."""
        kind, of = seen
        with MetricsLog(self.run.anomalies) as file:
            file.write(anomalies.record(self.at.step, self.at.stage, kind, of, report, rows))
        done = "; nothing was updated" if kind == "not-finite" else ""
        said = f"step {self.at.step}: {kind} {', '.join(of)}{done} (anomalies.jsonl has the rows)"
        self.progress.notify(said)

    @property
    def logs(self) -> bool:
        """Returns whether the current step is logged."""
        return self.at.step % self.prepared.recipe.output.log_every == 0

    def record(self, report: StepReport, seconds: float) -> dict[str, Any]:
        """Returns the step's record for metrics.jsonl."""
        optim = self.prepared.recipe.stages[self.at.stage].optim
        chance = self.prepared.plans[self.at.stage].chances(self.prepared.dims)
        return {
            "step": self.at.step, "stage": self.at.stage, "loss": report.loss,
            **{name if name.startswith(BY_SOURCE) else f"terms/{name}": v for name, v in report.terms.items()},
            **{f"terms/{name}": value for name, value in report.metrics.items()},
            **{f"chance/{name}": value for name, value in (chance | report.chance).items()},
            **{f"dropped/{reason}": n for reason, n in report.dropped.items()},
            "lr": optim.lr * rate(optim, self.steps, self.at.stage_step - 1), "grad_norm": report.grad_norm,
            "tokens": report.tokens, "tokens_per_second": report.tokens / seconds, "seconds": seconds,
        }  # fmt: skip

    def log(self, record: dict[str, Any]) -> None:
        """Writes a record to metrics.jsonl, TensorBoard and observers."""
        self.metrics.write(record)
        scalars = {name: value for name, value in record.items() if isinstance(value, float)}
        self.board.scalars(record["step"], scalars)
        if self.ranks.first:
            self.prepared.instances.registry.logged(record["step"], scalars)

    def draw(self, at: Position) -> None:
        """Writes the images of the terms to TensorBoard."""
        with unsharded(self.objective), eval_no_grad(self.objective, self.device):
            pictures = stage_pictures(self.prepared, self.objective, at.stage, at.stage_step - 1, self.device)
        self.board.images(at.step, pictures)

    def validate(self, at: Position) -> None:
        """Validates and logs, unless this step is already validated, as after a resume."""
        if self.validator.done != at.step:
            self.log(self.validator(at, self.run, self.progress.notify))

    def write(self, at: Position) -> None:
        """Saves a checkpoint."""
        kept = {
            "watch": self.watch.state(),
            "idle": self.idle.items,
            "validation": self.validator.state(),
        }
        tensors = state_dict.state_tensors(self.objective, self.optimizer)
        self.saver.save(at.step, tensors, {"position": asdict(at), **kept})
