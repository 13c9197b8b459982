"""The loop of one stage: take a step, run it, log it, save now and then."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, replace

import torch

from lmmkit import assemble
from lmmkit.data.features import FeatureCache, digest
from lmmkit.data.loader import load_steps
from lmmkit.errors import Problem, UserError
from lmmkit.objective import Objective
from lmmkit.plan.prepare import Prepared
from lmmkit.rundir import RunDir
from lmmkit.training import state
from lmmkit.training.log import Board, MetricsLog, Progress, Silence
from lmmkit.training.pictures import stage_pictures
from lmmkit.training.ranks import ALONE, Ranks
from lmmkit.training.saver import Saver
from lmmkit.training.shard import rooted, sees_everywhere, whole
from lmmkit.training.signals import Stop, ignore_in_worker
from lmmkit.training.step import Report, rate, run_step

IDLE_STEPS = 50  # steps in which a term may have nothing to count, before that is an error


@dataclass(frozen=True)
class Position:
    """Where a run stands: updates made in all, the stage, updates made in it."""

    stage: str
    step: int
    stage_step: int


@dataclass(frozen=True)
class Every:
    """Calls `do` after every `n`th step of the run and after a stage's last, never with n = 0.

    With `on_stop` also after the step that a run stops at, whatever n is.
    """

    n: int
    do: Callable[[Position], None]
    on_stop: bool = False

    def __call__(self, position: Position, *, last: bool, stopping: bool) -> None:
        due = self.n > 0 and (last or position.step % self.n == 0)
        if due or (stopping and self.on_stop):
            self.do(position)


@dataclass
class Idle:
    """Counts the items of each term over a stage's first steps, or all of a shorter one."""

    steps: int

    items: dict[str, int] = field(default_factory=dict)

    def check(self, report: Report, position: Position) -> None:
        """Raises `UserError` when by then a term has had nothing to average."""
        for name, value in report.terms.items():
            self.items[name] = self.items.get(name, 0) + (value is not None)
        idle = [name for name, n in self.items.items() if n == 0]
        if position.stage_step == min(IDLE_STEPS, self.steps) and idle:
            raise UserError([_idle(position, name) for name in idle])


def run_stage(
    prepared: Prepared, objective: Objective, optimizer: torch.optim.Optimizer, position: Position,
    run: RunDir, metrics: MetricsLog | Silence, board: Board | Silence, stop: Stop, device: torch.device, ranks: Ranks,
) -> tuple[Position, bool]:  # fmt: skip
    """Runs the rest of a stage; returns early, saved, when a stop is asked for.

    Returns where the run stands, and whether it stopped. A stop asked for after the last step was
    looked at is not this stage's: nothing may be saved for it.
    """
    recipe, stage = prepared.recipe, prepared.recipe.stages[position.stage]
    plan, pipeline, steps = (
        prepared.plans[position.stage],
        prepared.pipeline(position.stage),
        prepared.steps(position.stage),
    )
    chance = plan.chances(prepared.dims)
    features = feature_cache(prepared, objective, position.stage, ranks)
    blank = not ranks.alone and sees_everywhere(recipe)
    packer = replace(pipeline.packer, features=features, blank=blank)
    pipeline = replace(pipeline, packer=packer, rank=ranks.rank, world=ranks.world)
    empty = None if ranks.alone else packer.pack([])[0]

    saver = Saver(run, keep=recipe.output.keep, ranks=ranks, beside=recipe.output.async_save)

    def save(at: Position) -> None:
        saver.save(at.step, state.tensors(objective, optimizer), {"position": asdict(at)})

    def draw(at: Position) -> None:
        with rooted(objective):
            board.images(
                at.step, stage_pictures(prepared, objective, position.stage, at.stage_step - 1, device)
            )

    entries = (Every(recipe.output.save_every, save, on_stop=True), Every(recipe.output.pictures_every, draw))
    objective.train()
    assemble.recompute(objective, recipe.speed)
    idle = Idle(steps)
    batches = load_steps(
        pipeline, position.stage_step, steps, workers=recipe.speed.workers, worker_init=ignore_in_worker
    )
    stopping = False
    progress = Progress(position.stage, steps, done=position.stage_step) if ranks.first else Silence()
    with saver, progress:
        clock = time.perf_counter()
        for step in batches:
            factor = rate(stage.optim, steps, position.stage_step)
            for group in optimizer.param_groups:
                group["lr"] = group["peak"] * factor
            weights = {name: w.at(position.stage_step / steps) for name, w in plan.weights.items()}
            clip = None if stage.optim.clip == "none" else stage.optim.clip
            position = Position(position.stage, position.step + 1, position.stage_step + 1)
            logged = position.step % recipe.output.log_every == 0
            report = run_step(
                objective,
                optimizer,
                step,
                weights,
                clip=clip,
                device=device,
                readings=logged,
                features=features,
                ranks=ranks,
                empty=empty,
                each=recipe.parallel.exchange == "micro_batch",
            )
            _check_finite(report, position, [key for batch in step for _, key in batch.views])
            idle.check(report, position)
            now = time.perf_counter()
            if logged:
                record = _record(position, report, chance, stage.optim.lr * factor, now - clock)
                metrics.write(record)
                scalars = {k: v for k, v in record.items() if isinstance(v, float)}
                board.scalars(position.step, scalars)
                if ranks.first:
                    prepared.parts.door.logged(position.step, scalars)
            clock = now
            progress.update(position.stage_step, tokens=report.tokens, loss=report.loss)
            # read once, and the same everywhere: what is not saved for must not stop us
            asked = ranks.most(stop.requested or 0)
            stopping = asked > 0
            stop.requested = asked or stop.requested
            saver.check()
            for entry in entries:
                entry(position, last=position.stage_step == steps, stopping=stopping)
            if stopping:
                break
    return position, stopping


def feature_cache(
    prepared: Prepared, objective: Objective, stage: str, ranks: Ranks = ALONE
) -> FeatureCache | None:
    """Where features of pictures are kept, in a stage whose encoder stays as it is."""
    asked, recipe = prepared.recipe.speed.features, prepared.recipe
    if asked is None or recipe.stages[stage].train.vision is not None:
        return None
    # of one set of weights, encoders of another activation or number of heads say other things
    seen = f"{recipe.model.vision} {prepared.dims.image} {objective.compute}"
    held = {name: whole(tensor) for name, tensor in objective.lmm.vision.state_dict().items()}
    return FeatureCache(
        recipe.path(asked.folder), f"{digest(held)} {seen}", int(asked.gib * 2**30), ranks.world
    )


def _record(at: Position, report: Report, chance: dict[str, float], lr: float, seconds: float) -> dict:
    return {
        "step": at.step, "stage": at.stage, "loss": report.loss,
        **{f"terms/{name}": value for name, value in report.terms.items()},
        **{f"terms/{name}": value for name, value in report.readings.items()},
        **{f"chance/{name}": value for name, value in (chance | report.chance).items()},
        **{f"dropped/{reason}": n for reason, n in report.dropped.items()},
        "lr": lr, "grad_norm": report.grad_norm, "tokens": report.tokens,
        "tokens_per_second": report.tokens / seconds, "seconds": seconds,
    }  # fmt: skip


def _check_finite(report: Report, at: Position, keys: list[str]) -> None:
    if math.isfinite(report.loss) and math.isfinite(report.grad_norm):
        return
    got = f"loss {report.loss}, gradient norm {report.grad_norm} on {', '.join(dict.fromkeys(keys))[:300]}"
    mend = "Resume from the last checkpoint with a lower `lr` or a `clip`, or look at these rows."
    raise UserError(
        Problem("train/not-finite", f"step {at.step}, stage {at.stage}", got, "finite numbers", mend)
    )


def _idle(at: Position, name: str) -> Problem:
    got = f"no item for term `{name}` in the first {at.stage_step} steps"
    mend = "Take it out of the stage's losses, or give it data it applies to (`lmmkit plugins trace`)."
    return Problem("train/idle-term", f"stages.{at.stage}.losses.{name}", got, "something to average", mend)
