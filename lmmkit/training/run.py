"""A run from recipe to models: prepares, builds, restores, trains every stage, saves."""

from __future__ import annotations

import sys
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from lmmkit import build
from lmmkit.cost_estimate import checkpoint_bytes, checkpoint_room
from lmmkit.errors import UserError, raise_all
from lmmkit.errors.training import DIFFER, NO_SHARED_FOLDER, NO_STAGE, NO_START, ONLY_WITH_RESUME
from lmmkit.model.transforms import lora
from lmmkit.objective import Objective
from lmmkit.plan.prepare import Prepared, prepare
from lmmkit.recipe import Recipe, digest, read_recipe, to_mapping
from lmmkit.runs.files import clean_aside
from lmmkit.runs.run_folder import RunFolder
from lmmkit.runs.run_lock import lock
from lmmkit.training import resume as resuming
from lmmkit.training.checkpoint import read, write
from lmmkit.training.checkpoint.rng import seed_stage
from lmmkit.training.checkpoint.state_dict import restore_state
from lmmkit.training.checkpoint.validate_state import state_of
from lmmkit.training.distributed import fsdp
from lmmkit.training.distributed.process_group import Ranks, joined
from lmmkit.training.monitoring.determinism import repeatable
from lmmkit.training.monitoring.metrics_log import Board, MetricsLog, NullLogger
from lmmkit.training.save_models import build_unsharded, gathered, save_model
from lmmkit.training.signals import Interrupted, Stop
from lmmkit.training.stage_loop import run_stage
from lmmkit.training.triggers import Position
from lmmkit.training.validation import validate_problems
from lmmkit.weights import model_folder


@dataclass(frozen=True)
class TrainResult:
    """Describes how a run ended: its folder, and the signal that stopped it early, if any.

    `begun`: whether training had started when it stopped, so that there is a checkpoint at that step.
    """

    run: RunFolder
    signal: int | None
    begun: bool = True


def train(
    recipe: Recipe | str | Path, *, out: str | Path | None = None, resume: bool = False,
    stage: str | None = None, trust_files: bool = False, source: str | None = None, accept_data: bool = False,
) -> TrainResult:  # fmt: skip
    """Trains the recipe's stages in order (or `stage` alone) and writes a run folder.

    Args:
        recipe: a recipe, or the path of its file.
        out: the run folder, new or empty; with `resume`, the folder of this recipe's run. Default:
            runs/<name of the file>, or runs/<digest> if the recipe is not given as a file.
        resume: continue from the newest complete checkpoint.
        stage: train only this stage, from the model of the previous one.
        trust_files: run plugins from local files.
        source: the recipe's text, stored unchanged in the run folder.
        accept_data: with `resume`, continue although the data has changed.

    Raises:
        UserError: bad recipe, data or folder.
        MachineError: not enough disk space or memory.
    """
    name = None
    if not isinstance(recipe, Recipe):
        name, recipe = Path(recipe).stem, read_recipe(recipe)
    if accept_data and not resume:
        raise UserError(ONLY_WITH_RESUME.at(resuming.ACCEPT, got="a new run"))
    out = Path("runs") / (name or digest(recipe)[:12]) if out is None else Path(out)
    with joined() as ranks, Stop() as stop:
        try:
            with _preparing(stop, ranks):
                fsdp.check_world(recipe, ranks)
                prepared, device = _prepare(recipe, trust_files)
                run = RunFolder(out)
                if ranks.first:
                    _check_stages(recipe, run, stage, resume)
                    run = RunFolder.create(out, resume)
            with lock(run) if ranks.first else nullcontext(), repeatable(recipe):
                return _train(prepared, run, ranks, device, stop, resume, stage, source, accept_data)
        except Interrupted:
            return TrainResult(RunFolder(out), stop.requested, begun=False)


def _preparing(stop: Stop, ranks: Ranks) -> AbstractContextManager[None]:
    """Lets a signal end the block at once if one process trains; several ranks must not lose one."""
    return stop.interrupting() if ranks.alone else nullcontext()


def _prepare(recipe: Recipe, trust_files: bool) -> tuple[Prepared, torch.device]:
    """Returns the prepared recipe and the device. Runs all checks that need no run folder."""
    prepared = prepare(recipe, trust_files=trust_files)
    raise_all(validate_problems(prepared))
    device = build.device_here()
    build.backend(recipe, device)
    build.check_optimizers(recipe)
    build.check_compiler(recipe, device)
    build.check_pretrained(prepared.recipe, prepared.dims, prepared.pretrained, device)
    return prepared, device


def _train(
    prepared: Prepared, run: RunFolder, ranks: Ranks, device: torch.device, stop: Stop, resume: bool, stage: str | None,
    source: str | None, accept_data: bool,
) -> TrainResult:  # fmt: skip
    """Starts or resumes the run. A stop before the first step ends it without a save."""
    recipe = prepared.recipe
    if recipe.speed.threads:
        torch.set_num_threads(recipe.speed.threads)
    with _preparing(stop, ranks):
        changed = _open(prepared, run, ranks, source, accept_data) if ranks.first else []
        _check_together(ranks, run, prepared)
        saved, _, spoiled = read.newest(run, ranks) if resume else read.Newest(None, ())
        loaded = read.load(saved, spoiled=spoiled, ranks=ranks) if saved else None
        position, before = _first(prepared, stage), {}
        if saved is not None and loaded is not None:
            position, before = state_of(loaded, saved, recipe, prepared.steps)
        if resume and ranks.first:
            resuming.go_on(run, prepared, changed, position.step)
        objective = build_unsharded(prepared, device, ranks) if ranks.first else None
    with (
        MetricsLog(run.metrics) if ranks.first else NullLogger() as metrics,
        Board(run.tb, position.step + 1 if resume else None) if ranks.first else NullLogger() as board,
    ):
        if resume:
            metrics.truncate(position.step)
        if ranks.first:
            if resume and run.anomalies.is_file():
                with MetricsLog(run.anomalies) as anomalies:
                    anomalies.truncate(position.step)
            prepared.instances.registry.started(str(run.path), to_mapping(recipe), position.step)
        for name in _stages(recipe, position.stage, stage):
            fresh = name != position.stage or loaded is None
            objective, trainable = _begin(prepared, run, name, ranks, device, objective, fresh=fresh)
            if fresh:
                position = Position(name, position.step, 0)
                seed_stage(recipe.seed, name, ranks.rank)
            optimizer, frozen = build.optimizer(objective, recipe.stages[name], trainable), None
            if saved is not None and loaded is not None and not fresh:
                restore_state(objective, optimizer, loaded, saved)
                frozen = loaded.frozen
                if not loaded.rng:
                    ranks.log_once(
                        f"saved by another number of ranks: dropout draws anew from step {position.step} on"
                    )
                    seed_stage(recipe.seed, name, ranks.rank, position.stage_step)
            loaded = None  # closes its files: pruning then frees their disk space
            position, stopped = run_stage(
                prepared, objective, optimizer, position, run, metrics, board, stop, device, ranks, before, frozen,
            )  # fmt: skip
            before = {}
            if stopped:
                return TrainResult(run, stop.requested)
            optimizer = None  # frees the memory of its moments
            objective = _end(prepared, run, ranks, device, objective, position)
    return TrainResult(run, None)


def _open(
    prepared: Prepared, run: RunFolder, ranks: Ranks, source: str | None, accept_data: bool
) -> list[resuming.Change]:
    """Removes leftovers of a killed process. Starts a new run, or returns the changes of an existing one."""
    for note in write.sweep(run):
        ranks.log_once(note)
    run.clear_temporary()
    for name in prepared.recipe.stages:
        clean_aside(run.model(name))
        clean_aside(run.best(name))
    changed = []
    if run.is_run:
        changed = resuming.changes(run, prepared, accept_data=accept_data)
    else:
        resuming.begin(run, prepared, source)
    write.check_space(run, checkpoint_room(checkpoint_bytes(prepared), prepared.recipe.output.keep))
    return changed


def _begin(
    prepared: Prepared, run: RunFolder, name: str, ranks: Ranks, device: torch.device, objective: Objective | None,
    *, fresh: bool,
) -> tuple[Objective, dict[str, list[nn.Parameter]]]:  # fmt: skip
    """Returns the objective at the start of a stage, and its trainable parameters by part.

    One process reuses the objective that it has. Of several ranks, the first builds it on its host, like a
    single process, and sends each rank its shard.
    """
    trainable: dict[str, list[nn.Parameter]] = {}
    if ranks.first:
        objective = objective or build_unsharded(prepared, device, ranks)
        if fresh:
            _start(objective, prepared, run, name)
        stage = prepared.recipe.stages[name]
        trainable = build.set_stage(objective, prepared.plans[name], stage, seed=prepared.recipe.seed)
    if ranks.alone:
        assert objective is not None
        return objective, trainable
    own, trainable = fsdp.sharded(prepared, name, ranks, device)
    fsdp.scatter_from_rank0(objective, own)
    return own, trainable


def _end(
    prepared: Prepared, run: RunFolder, ranks: Ranks, device: torch.device, objective: Objective, position: Position
) -> Objective | None:  # fmt: skip
    """Writes the stage's model folder with full, merged weights. Returns the objective for the next stage."""
    full = gathered(objective, prepared, position.stage, ranks, device)
    if full is not None:
        save_model(run.model(position.stage), full, prepared, position.stage, position.step, {})
        lora.merge(full.lmm.decoder)  # the next stage starts from merged weights
    ranks.barrier()
    return full


def _check_together(ranks: Ranks, run: RunFolder, prepared: Prepared) -> None:
    """Raises `UserError` unless all ranks have the same recipe and plan, and the first rank's folder."""
    if ranks.alone:
        return
    own = {stage: plan.digest for stage, plan in prepared.plans.items()} | {"recipe": digest(prepared.recipe)}
    first = ranks.broadcast(own)  # all ranks also wait here until the folder exists
    where = f"rank {ranks.rank} of {ranks.world}"
    if own != first:
        raise UserError(DIFFER.at(where, got="another recipe or plan"))
    if not run.is_run:
        raise UserError(NO_SHARED_FOLDER.at(f"{where}: {run.path}", got="no run in it"))


def _check_stages(recipe: Recipe, run: RunFolder, only: str | None, resume: bool) -> None:
    """Raises `UserError` unless `only` is a stage, and each start model exists or this run will write it."""
    names = list(recipe.stages)
    if only is not None and only not in names:
        raise UserError(NO_STAGE.at("--stage", got=f"`{only}`", stages=", ".join(names)))
    if resume:  # stages before the checkpoint need no start model; `_start` checks the others
        return
    to_write = {run.model(name).resolve() for name in names if only is None}
    for name in names if only is None else [only]:
        folder = _start_folder(recipe, run, name)
        if folder is not None and folder.resolve() not in to_write:
            _require_start(recipe, name, folder)


def _start_folder(recipe: Recipe, run: RunFolder, stage: str) -> Path | None:
    """Returns the start model: the stage's `start`, else that of the stage before; None if there is none."""
    names = list(recipe.stages)
    own_start = recipe.stages[stage].start
    if own_start is not None:
        return recipe.path(own_start)
    return run.model(names[names.index(stage) - 1]) if stage != names[0] else None


def _require_start(recipe: Recipe, stage: str, folder: Path) -> None:
    if (folder / "config.json").is_file():
        return
    where = recipe.where(f"stages.{stage}.start")
    raise UserError(NO_START.at(where, got=f"no model in {folder}", stage=stage))


def _first(prepared: Prepared, stage: str | None) -> Position:
    names = list(prepared.recipe.stages)
    if stage is None:
        return Position(names[0], 0, 0)
    return Position(stage, sum(prepared.steps(name) for name in names[: names.index(stage)]), 0)


def _stages(recipe: Recipe, first: str, only: str | None) -> list[str]:
    names = list(recipe.stages)
    return [only] if only is not None else names[names.index(first) :]


def _start(objective: Objective, prepared: Prepared, run: RunFolder, stage: str) -> None:
    """Loads the weights that a stage starts from. Prints the names that the folder lacks."""
    folder = _start_folder(prepared.recipe, run, stage)
    if folder is None:
        return
    _require_start(prepared.recipe, stage, folder)
    model_folder.config_of(folder)
    for name in build.start(objective, folder):
        print(f"note: {name} is not in {folder}; it begins at its initial draw", file=sys.stderr)
