"""A run from recipe to models: prepare, build, restore, every stage, save."""

from __future__ import annotations

import sys
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from lmmkit import assemble
from lmmkit.errors import UserError, raise_all
from lmmkit.errors.training import DIFFER, FOLDER, NO_STAGE, NO_START, OPTION
from lmmkit.estimate import checkpoint_bytes, checkpoint_room
from lmmkit.malloc import keep_memory
from lmmkit.model import lora
from lmmkit.objective import Objective
from lmmkit.plan.prepare import Prepared, prepare, writes_outside
from lmmkit.recipe import Recipe, digest, read_recipe, to_mapping
from lmmkit.rundir import RunDir
from lmmkit.runlock import lock
from lmmkit.training import checkpoint, shard, store
from lmmkit.training import resume as resuming
from lmmkit.training.checked import state_of
from lmmkit.training.due import Position
from lmmkit.training.log import Board, MetricsLog, Silence
from lmmkit.training.loop import run_stage
from lmmkit.training.models import build, gathered, save_model
from lmmkit.training.ranks import Ranks, joined
from lmmkit.training.repeatable import repeatable
from lmmkit.training.rng import seed_stage
from lmmkit.training.signals import Interrupted, Stop
from lmmkit.training.state import restore
from lmmkit.training.validate import validate_problems
from lmmkit.weights import own


@dataclass(frozen=True)
class Finished:
    """How a run ended: its folder, and the signal that stopped it early, if one did.

    `begun`: whether it came as far as its first step, so that a checkpoint stands where it stopped.
    """

    run: RunDir
    signal: int | None
    begun: bool = True


def train(
    recipe: Recipe | str | Path, *, out: str | Path | None = None, resume: bool = False,
    stage: str | None = None, trust_files: bool = False, source: str | None = None, accept_data: bool = False,
) -> Finished:  # fmt: skip
    """Trains the recipe's stages in order (or `stage` alone) and leaves a run folder.

    Args:
        recipe: as read, or its file.
        out: the run folder, new or empty; with `resume`, one that holds this recipe's run. By
            default runs/<name of the file>, or runs/<digest> of a recipe that is no file.
        resume: go on from the newest complete checkpoint.
        stage: only this one, from the model of the stage before.
        trust_files: run plugins from local files.
        source: the recipe's text, kept in the run folder as it was written.
        accept_data: with `resume`, go on although the data is another.

    Raises:
        UserError: bad recipe, data, folder. MachineError: no space, no memory.
    """
    name = None
    if not isinstance(recipe, Recipe):
        name, recipe = Path(recipe).stem, read_recipe(recipe)
    raise_all(writes_outside(recipe))
    if accept_data and not resume:
        raise UserError(OPTION.at(resuming.ACCEPT, got="a new run"))
    out = Path("runs") / (name or digest(recipe)[:12]) if out is None else Path(out)
    with joined() as ranks, Stop() as stop:
        try:
            with _preparing(stop, ranks):
                shard.check_world(recipe, ranks)
                prepared, device = _prepare(recipe, trust_files)
                run = RunDir(out)
                if ranks.first:
                    _check_stages(recipe, run, stage, resume)
                    run = RunDir.create(out, resume)
            with lock(run) if ranks.first else nullcontext(), repeatable(recipe):
                return _train(prepared, run, ranks, device, stop, resume, stage, source, accept_data)
        except Interrupted:
            return Finished(RunDir(out), stop.requested, begun=False)


def _preparing(stop: Stop, ranks: Ranks) -> AbstractContextManager[None]:
    """What one process may be stopped in at once; of several none leaves the others alone."""
    return stop.interrupting() if ranks.alone else nullcontext()


def _prepare(recipe: Recipe, trust_files: bool) -> tuple[Prepared, torch.device]:
    """All that can fail before a folder is made."""
    prepared = prepare(recipe, trust_files=trust_files)
    raise_all(validate_problems(prepared))
    device = assemble.device_here()
    assemble.backend(recipe, device)
    assemble.check_optimizers(recipe)
    assemble.check_compiler(recipe, device)
    assemble.check_origins(prepared.recipe, prepared.dims, prepared.origins, device)
    return prepared, device


def _train(
    prepared: Prepared, run: RunDir, ranks: Ranks, device: torch.device, stop: Stop, resume: bool, stage: str | None,
    source: str | None, accept_data: bool,
) -> Finished:  # fmt: skip
    """Begins the run or goes on with it. Before its first step a stop ends it as it stands."""
    recipe = prepared.recipe
    if recipe.speed.threads:
        torch.set_num_threads(recipe.speed.threads)
    if recipe.speed.keep_memory and (why_not := keep_memory()):
        ranks.note(f"speed.keep_memory has no effect: {why_not}")
    with _preparing(stop, ranks):
        changed = _open(prepared, run, ranks, source, accept_data) if ranks.first else []
        _check_together(ranks, run, prepared)
        saved, _, spoiled = checkpoint.newest(run, ranks) if resume else checkpoint.Newest(None, ())
        loaded = checkpoint.load(saved, spoiled=spoiled, ranks=ranks) if saved else None
        position, before = _first(prepared, stage), {}
        if saved is not None and loaded is not None:
            position, before = state_of(loaded, saved, recipe, prepared.steps)
        if resume and ranks.first:
            resuming.go_on(run, prepared, changed, position.step)
        objective = build(prepared, device, ranks) if ranks.first else None
    with (
        MetricsLog(run.metrics) if ranks.first else Silence() as metrics,
        Board(run.tb, position.step + 1 if resume else None) if ranks.first else Silence() as board,
    ):
        if resume:
            metrics.truncate(position.step)
        if ranks.first:
            if resume and run.anomalies.is_file():
                with MetricsLog(run.anomalies) as anomalies:
                    anomalies.truncate(position.step)
            prepared.parts.door.started(str(run.path), to_mapping(recipe), position.step)
        for name in _stages(recipe, position.stage, stage):
            fresh = name != position.stage or loaded is None
            objective, learns = _begin(prepared, run, name, ranks, device, objective, fresh=fresh)
            if fresh:
                position = Position(name, position.step, 0)
                seed_stage(recipe.seed, name, ranks.rank)
            optimizer, frozen = assemble.optimizer(objective, recipe.stages[name], learns), None
            if saved is not None and loaded is not None and not fresh:
                restore(objective, optimizer, loaded, saved)
                frozen = loaded.frozen
                if not loaded.rng:
                    ranks.note(
                        f"saved by another number of ranks: dropout draws anew from step {position.step} on"
                    )
                    seed_stage(recipe.seed, name, ranks.rank, position.stage_step)
            loaded = None  # closes its files, so that the disk space is free once it is pruned
            position, stopped = run_stage(
                prepared, objective, optimizer, position, run, metrics, board, stop, device, ranks, before, frozen,
            )  # fmt: skip
            before = {}
            if stopped:
                return Finished(run, stop.requested)
            optimizer = None  # its moments are not of the model
            objective = _end(prepared, run, ranks, device, objective, position)
    return Finished(run, None)


def _open(
    prepared: Prepared, run: RunDir, ranks: Ranks, source: str | None, accept_data: bool
) -> list[resuming.Change]:
    """Clears what a killed process left, and begins the run, or tells how it has changed."""
    for note in store.sweep(run):
        ranks.note(note)
    run.clear_temporary()
    for name in prepared.recipe.stages:
        own.clear(run.model(name))
        own.clear(run.best(name))
    changed = []
    if run.is_run:
        changed = resuming.changes(run, prepared, accept_data=accept_data)
    else:
        resuming.begin(run, prepared, source)
    store.check_space(run, checkpoint_room(checkpoint_bytes(prepared), prepared.recipe.output.keep))
    return changed


def _begin(
    prepared: Prepared, run: RunDir, name: str, ranks: Ranks, device: torch.device, objective: Objective | None,
    *, fresh: bool,
) -> tuple[Objective, dict[str, list[nn.Parameter]]]:  # fmt: skip
    """The objective as a stage begins, and what learns in it, by part.

    One process goes on with the one it has. Of several the first makes it on its host, as one process
    would, and hands out every rank's part.
    """
    learns: dict[str, list[nn.Parameter]] = {}
    if ranks.first:
        objective = objective or build(prepared, device, ranks)
        if fresh:
            _start(objective, prepared, run, name)
        stage = prepared.recipe.stages[name]
        learns = assemble.set_stage(objective, prepared.plans[name], stage, seed=prepared.recipe.seed)
    if ranks.alone:
        assert objective is not None
        return objective, learns
    own, learns = shard.sharded(prepared, name, ranks, device)
    shard.hand_out(objective, own)
    return own, learns


def _end(
    prepared: Prepared, run: RunDir, ranks: Ranks, device: torch.device, objective: Objective, position: Position
) -> Objective | None:  # fmt: skip
    """Leaves the stage's model folder, whole weights, updates merged; the objective to go on with."""
    full = gathered(objective, prepared, position.stage, ranks, device)
    if full is not None:
        save_model(run.model(position.stage), full, prepared, position.stage, position.step, {})
        lora.merge(full.lmm.decoder)  # the next stage starts from whole weights
    ranks.barrier()
    return full


def _check_together(ranks: Ranks, run: RunDir, prepared: Prepared) -> None:
    """All ranks have the same recipe and plan, and see the first one's folder."""
    if ranks.alone:
        return
    own = {stage: plan.digest for stage, plan in prepared.plans.items()} | {"recipe": digest(prepared.recipe)}
    first = ranks.tell(own)  # and everybody waits until the folder is there
    where = f"rank {ranks.rank} of {ranks.world}"
    if own != first:
        raise UserError(DIFFER.at(where, got="another recipe or plan"))
    if not run.is_run:
        raise UserError(FOLDER.at(f"{where}: {run.path}", got="no run in it"))


def _check_stages(recipe: Recipe, run: RunDir, only: str | None, resume: bool) -> None:
    """The stage asked for exists, and so does every model to start from that the run will not write."""
    names = list(recipe.stages)
    if only is not None and only not in names:
        raise UserError(NO_STAGE.at("--stage", got=f"`{only}`", stages=", ".join(names)))
    if resume:  # what is behind the checkpoint is no longer needed; `_start` asks for the rest
        return
    to_write = {run.model(name).resolve() for name in names if only is None}
    for name in names if only is None else [only]:
        folder = _start_folder(recipe, run, name)
        if folder is not None and folder.resolve() not in to_write:
            _require_start(recipe, name, folder)


def _start_folder(recipe: Recipe, run: RunDir, stage: str) -> Path | None:
    """The model a stage starts from: its `start`, else what the stage before left; None: the seed."""
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


def _start(objective: Objective, prepared: Prepared, run: RunDir, stage: str) -> None:
    """Fills the model a stage starts from."""
    folder = _start_folder(prepared.recipe, run, stage)
    if folder is None:
        return
    _require_start(prepared.recipe, stage, folder)
    own.config_of(folder)
    for name in assemble.start(objective, folder):
        print(f"note: {name} is not in {folder}; it begins at its initial draw", file=sys.stderr)
