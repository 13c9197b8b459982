"""The loop of one stage: take a step, run it, log it, save now and then."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import torch

from lmmkit import assemble
from lmmkit.batch import Step
from lmmkit.data.bad_rows import Ledger
from lmmkit.data.features import FeatureCache, digest
from lmmkit.data.loader import load_steps
from lmmkit.data.pipeline import Pipeline
from lmmkit.errors import MachineError, Problem, UserError
from lmmkit.objective import Objective
from lmmkit.plan.prepare import Prepared
from lmmkit.rundir import RunDir
from lmmkit.training import anomalies, state
from lmmkit.training.anomalies import Watch
from lmmkit.training.log import Board, MetricsLog, Progress, Silence
from lmmkit.training.memory import telling_room
from lmmkit.training.pictures import stage_pictures
from lmmkit.training.ranks import ALONE, Ranks
from lmmkit.training.rng import looking
from lmmkit.training.saver import Saver
from lmmkit.training.shard import rooted, sees_everywhere, whole
from lmmkit.training.signals import Interrupted, Stop, ignore_in_worker, until
from lmmkit.training.step import Report, run_step, set_rate
from lmmkit.training.validate import Validator, asked

IN_A_ROW = 3  # times in a row that a checkpoint may fail to be written, less one
BY_SOURCE = "loss/"
IDLE_STEPS = 50  # steps in which a term may have nothing to count, before that is an error


@dataclass(frozen=True)
class Position:
    """Where a run stands: updates made in all, the stage, updates made in it."""

    stage: str
    step: int
    stage_step: int


@dataclass(frozen=True)
class Every:
    """Calls `do` after every `n`th step of the run and after a stage's last, never with n = 0."""

    n: int
    do: Callable[[Position], None]

    def __call__(self, position: Position, *, last: bool) -> None:
        if self.n > 0 and (last or position.step % self.n == 0):
            self.do(position)


@dataclass
class Patience:
    """Saves when it is time. What cannot be written is told and tried again the next time; at the
    `IN_A_ROW`th time in a row the run ends with it, and so it does where there is no next time."""

    write: Callable[[Position], None]
    say: Callable[[str], None]
    failed: int = 0
    saved: Position | None = None

    def __call__(self, at: Position) -> None:
        try:
            self.now(at)
        except MachineError as error:
            self.failed += 1
            if self.failed >= IN_A_ROW:
                raise
            self.say(f"no checkpoint of step {at.step} (failed {self.failed} of {IN_A_ROW}): {error}")

    def now(self, at: Position) -> None:
        """As a run that ends here saves. Raises `MachineError` if it cannot be written."""
        if self.saved != at:
            self.write(at)
            self.saved, self.failed = at, 0


@dataclass
class Idle:
    """Counts the items of each term over a stage's first steps, or all of a shorter one."""

    steps: int

    items: dict[str, int] = field(default_factory=dict)

    def check(self, report: Report, position: Position) -> None:
        """Raises `UserError` when by then a term has had nothing to average."""
        for name, value in report.terms.items():
            if name.startswith(BY_SOURCE):
                continue
            self.items[name] = self.items.get(name, 0) + (value is not None)
        idle = [name for name, n in self.items.items() if n == 0]
        if position.stage_step == min(IDLE_STEPS, self.steps) and idle:
            raise UserError([_idle(position, name) for name in idle])


def run_stage(
    prepared: Prepared, objective: Objective, optimizer: torch.optim.Optimizer, position: Position,
    run: RunDir, metrics: MetricsLog | Silence, board: Board | Silence, stop: Stop, device: torch.device, ranks: Ranks,
    before: Mapping[str, Any],
) -> tuple[Position, bool]:  # fmt: skip
    """Runs the rest of a stage; returns early, saved, when a stop is asked for.

    `before` is the state of the checkpoint that the stage goes on from, {} where it begins. Returns
    where the run stands, and whether it stopped. A stop asked for after the last step was looked at
    is not this stage's: nothing may be saved for it.
    """
    recipe, stage = prepared.recipe, prepared.recipe.stages[position.stage]
    plan, pipeline, steps = (
        prepared.plans[position.stage],
        _pipeline(prepared, objective, position.stage, ranks),
        prepared.steps(position.stage),
    )
    chance = plan.chances(prepared.dims)
    empty = None if ranks.alone else pipeline.packer.pack([])[0]
    watch, idle = Watch.of(before.get("watch")), Idle(steps, dict(before.get("idle", {})))
    validator = Validator.of(
        prepared, objective, position.stage, device, stop, ranks, before.get("validation")
    )
    saver = Saver(run, keep=recipe.output.keep, ranks=ranks, beside=recipe.output.async_save)

    def write(at: Position) -> None:
        kept = {"watch": watch.state(), "idle": idle.items, "validation": validator.state()}
        saver.save(at.step, state.tensors(objective, optimizer), {"position": asdict(at), **kept})

    def draw(at: Position) -> None:
        with rooted(objective), looking(objective, device):
            pictures = stage_pictures(prepared, objective, position.stage, at.stage_step - 1, device)
        board.images(at.step, pictures)

    def log(record: dict[str, Any]) -> None:
        metrics.write(record)
        scalars = {name: value for name, value in record.items() if isinstance(value, float)}
        board.scalars(record["step"], scalars)
        if ranks.first:
            prepared.parts.door.logged(record["step"], scalars)

    def validate(at: Position) -> None:
        if validator.done != at.step:
            log(validator(at, run, progress.say))

    ledger, passed = _ledger(pipeline, position, run, ranks), []
    objective.train()
    assemble.set_layers(objective, recipe.speed)
    stopping = False
    progress = Progress(position.stage, steps, done=position.stage_step) if ranks.first else Silence()
    with saver, progress:
        patience = Patience(write, progress.say)
        # what is saved comes last: a run that goes on from there has done the others
        entries = (
            Every(recipe.output.pictures_every, draw),
            Every(validator.every, validate),
            Every(recipe.output.save_every, patience),
        )
        batches = load_steps(
            pipeline, position.stage_step, steps, workers=recipe.speed.workers, worker_init=ignore_in_worker,
            sifted=lambda index, found: passed.extend(found),
        )  # fmt: skip
        if ranks.alone:  # of several, the others would have to save too
            batches = _saving(batches, lambda: patience.now(position))
        if position.stage_step:  # a stop may have come before this step's validation was through
            stopping = not _through(entries[1:2], position, steps)
        clock = time.perf_counter()
        # of several ranks none may leave the others alone with a step: they agree on a stop behind it
        for step in until(stop, batches) if ranks.alone else batches:
            factor = set_rate(optimizer, stage.optim, steps, position.stage_step)
            weights = {name: w.at(position.stage_step / steps) for name, w in plan.weights.items()}
            clip = None if stage.optim.clip == "none" else stage.optim.clip
            position = Position(position.stage, position.step + 1, position.stage_step + 1)
            logged = position.step % recipe.output.log_every == 0
            with telling_room(f"step {position.step}, stage {position.stage}", step, recipe, device):
                report = run_step(
                    objective, optimizer, step, weights, clip=clip, device=device, readings=logged,
                    features=pipeline.packer.features, ranks=ranks, empty=empty,
                    each=recipe.parallel.exchange == "micro_batch",
                )  # fmt: skip
            now = time.perf_counter()
            if logged:
                log(_record(position, report, chance, stage.optim.lr * factor, now - clock))
            clock = now
            if (seen := watch.see(position.stage_step, report)) is not None:
                rows = anomalies.rows_of(pipeline, position.stage_step - 1)
                if ranks.first:
                    _note(seen, position, report, rows, run, progress.say)
                if watch.too_many(position.stage_step):
                    patience.now(position)
                    saver.wait()
                    raise UserError(anomalies.exhausted(position.step, position.stage, watch, report, rows))
            if report.dropped.get("bad_rows"):
                ledger.add(position.stage_step - 1, [row for rows in ranks.gather(passed) for row in rows])
                passed.clear()
            idle.check(report, position)
            progress.update(position.stage_step, tokens=report.tokens, loss=report.loss)
            stopping = asked(stop, ranks) > 0  # read once: what is not saved for must not stop us
            saver.check()
            stopping = not _through(entries, position, steps) or stopping
            if stopping:
                break
        if stopping or position.stage_step < steps:
            patience.now(position)
            stopping = True
    return position, stopping


def _through(entries: Iterable[Every], position: Position, steps: int) -> bool:
    """Does what is due at a step; False where a stop came in between."""
    try:
        for entry in entries:
            entry(position, last=position.stage_step == steps)
    except Interrupted:
        return False
    return True


def _note(
    seen: tuple[str, list[str]], at: Position, report: Report, rows: Mapping[str, list[str]], run: RunDir,
    say: Callable[[str], None],
) -> None:  # fmt: skip
    """Records a step that is out of order, with its rows."""
    kind, of = seen
    with MetricsLog(run.anomalies) as file:
        file.write(anomalies.record(at.step, at.stage, kind, of, report, rows))
    done = "; nothing was updated" if kind == "not-finite" else ""
    say(f"step {at.step}: {kind} {', '.join(of)}{done} (anomalies.jsonl has the rows)")


def _pipeline(prepared: Prepared, objective: Objective, stage: str, ranks: Ranks) -> Pipeline:
    """The stage's data as this rank reads it."""
    pipeline = prepared.pipeline(stage)
    features = feature_cache(prepared, objective, stage, ranks)
    blank = not ranks.alone and sees_everywhere(prepared.recipe)
    packer = replace(pipeline.packer, features=features, blank=blank)
    return replace(pipeline, packer=packer, rank=ranks.rank, world=ranks.world)


def _ledger(pipeline: Pipeline, at: Position, run: RunDir, ranks: Ranks) -> Ledger:
    """The list of the rows this stage passes over."""
    weights = pipeline.order.weights
    ledger = Ledger(
        path=run.bad_rows, stage=at.stage, before=at.step - at.stage_step, writes=ranks.first,
        policies={name: records.bad_rows for name, records in pipeline.sources.items()},
        seen={name: pipeline.samples * w / sum(weights.values()) for name, w in weights.items()},
    )  # fmt: skip
    ledger.open(at.step, {name: records.rows.index.bad for name, records in pipeline.sources.items()})
    return ledger


def _saving(batches: Iterator[Step], save: Callable[[], None]) -> Iterator[Step]:
    """The steps; before an error of the machine goes on its way, what was learned is saved."""
    try:
        yield from batches
    except MachineError:
        save()
        raise


def feature_cache(
    prepared: Prepared, objective: Objective, stage: str, ranks: Ranks = ALONE
) -> FeatureCache | None:
    """Where features of pictures are kept, in a stage whose encoder stays as it is."""
    kept, recipe = prepared.recipe.speed.features, prepared.recipe
    if kept is None or recipe.stages[stage].train.vision is not None:
        return None
    # of one set of weights, encoders of another activation or number of heads say other things
    seen = f"{recipe.model.vision} {prepared.dims.image} {objective.compute}"
    held = {name: whole(tensor) for name, tensor in objective.lmm.vision.state_dict().items()}
    mark, limit, image = f"{digest(held)} {seen}", int(kept.gib * 2**30), prepared.dims.image
    return FeatureCache(recipe.path(kept.folder), mark, limit, (image.tokens, image.width), ranks.world)


def _record(at: Position, report: Report, chance: dict[str, float], lr: float, seconds: float) -> dict:
    return {
        "step": at.step, "stage": at.stage, "loss": report.loss,
        **{name if name.startswith(BY_SOURCE) else f"terms/{name}": v for name, v in report.terms.items()},
        **{f"terms/{name}": value for name, value in report.readings.items()},
        **{f"chance/{name}": value for name, value in (chance | report.chance).items()},
        **{f"dropped/{reason}": n for reason, n in report.dropped.items()},
        "lr": lr, "grad_norm": report.grad_norm, "tokens": report.tokens,
        "tokens_per_second": report.tokens / seconds, "seconds": seconds,
    }  # fmt: skip


def _idle(at: Position, name: str) -> Problem:
    got = f"no item for term `{name}` in the first {at.stage_step} steps"
    mend = "Take it out of the stage's losses, or give it data it applies to (`lmmkit plugins trace`)."
    return Problem("train/idle-term", f"stages.{at.stage}.losses.{name}", got, "something to average", mend)
