"""A run from recipe to models: prepares, builds, restores, trains every stage, saves."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import nn

from lmmkit import build
from lmmkit.cost_estimate import checkpoint_bytes, checkpoint_room
from lmmkit.errors import UserError
from lmmkit.errors.training import DIFFER, NO_SHARED_FOLDER, NO_STAGE, NO_START, ONLY_WITH_RESUME
from lmmkit.model.transforms import lora
from lmmkit.objective import Objective
from lmmkit.optimizers import build_optimizer
from lmmkit.plan.notices import notices
from lmmkit.plan.prepare import Prepared
from lmmkit.recipe import Recipe, digest, read_recipe
from lmmkit.runs.files import clean_aside
from lmmkit.runs.run_folder import RunFolder
from lmmkit.runs.run_lock import lock
from lmmkit.runs.sessions import session
from lmmkit.training import resume as resuming
from lmmkit.training.checkpoint import read, write
from lmmkit.training.checkpoint.disk_space import check_space
from lmmkit.training.checkpoint.read import Checkpoint
from lmmkit.training.checkpoint.rng import seed_stage
from lmmkit.training.checkpoint.state_dict import restore_state
from lmmkit.training.checkpoint.validate_state import state_of
from lmmkit.training.distributed import fsdp
from lmmkit.training.distributed.process_group import Ranks, joined
from lmmkit.training.monitoring.determinism import repeatable
from lmmkit.training.preflight import preflight
from lmmkit.training.reference import set_reference, set_teachers
from lmmkit.training.run_context import RunContext
from lmmkit.training.save_models import build_unsharded, gathered, save_model
from lmmkit.training.signals import Interrupted, Stop
from lmmkit.training.stage_loop import run_stage
from lmmkit.training.triggers import Position
from lmmkit.weights import model_folder


@dataclass(frozen=True)
class TrainResult:
    """Describes how a run ended: its folder, and the signal that stopped it early, if any.

    `begun`: whether training had started when it stopped, so that there is a checkpoint at that step.
    `dropped`: what its steps left out or cut, by the names in `data/views.py`.
    """

    run: RunFolder
    signal: int | None
    begun: bool = True
    dropped: Mapping[str, int] = field(default_factory=dict)


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
                prepared, device = preflight(recipe, trust_files=trust_files, ranks=ranks)
                fsdp.note_idle_keys(recipe, ranks)
                for line in notices(prepared) if ranks.first else ():
                    ranks.log_once(line)
                run = RunFolder(out)
                if ranks.first:
                    _check_stages(recipe, run, stage, resume)
                    run = RunFolder.create(out, resume)
            context = RunContext(prepared=prepared, run=run, ranks=ranks, device=device, stop=stop)
            with lock(run) if ranks.first else nullcontext(), repeatable(recipe):
                return _train(context, stage, resume=resume, source=source, accept_data=accept_data)
        except Interrupted:
            return TrainResult(RunFolder(out), stop.requested, begun=False)


def _preparing(stop: Stop, ranks: Ranks) -> AbstractContextManager[None]:
    """Lets a signal end the block at once if one process trains; several ranks must not lose one."""
    return stop.interrupting() if ranks.alone else nullcontext()


def _train(
    context: RunContext, only: str | None, *, resume: bool, source: str | None, accept_data: bool
) -> TrainResult:
    """Starts or resumes the run. A stop before the first step ends it without a save."""
    prepared, run, ranks = context.prepared, context.run, context.ranks
    recipe = prepared.recipe
    if recipe.speed.threads:
        torch.set_num_threads(recipe.speed.threads)
    with _preparing(context.stop, ranks):
        changed = _open(context, source, accept_data) if ranks.first else []
        _check_together(ranks, run, prepared)
        saved = read.load_newest(run, ranks) if resume else None
        position, state = _first(prepared, only), {}
        if saved is not None:
            position, state = state_of(saved, recipe, prepared.steps)
            context.dropped.update(state.get("dropped", {}))
        if resume and ranks.first:
            resuming.continue_run(run, prepared, changed, position.step, ranks.world)
        objective = build_unsharded(context) if ranks.first else None
    with _recorded(context) as note, context.logging(position.step, resume=resume) as context:
        trained: dict[str, int] = {}
        for name in _stages(recipe, position.stage, only):
            if name != position.stage:
                saved = None
            fresh = saved is None or bool(build.reference_parts(prepared, name))
            objective, trainable = _begin(context, name, objective, fresh=fresh)
            trained[name] = sum(p.numel() for each in trainable.values() for p in each)
            note(parameters=sum(p.numel() for p in objective.parameters()), trained=trained)
            set_reference(prepared, name, objective, ranks, context.device)
            set_teachers(prepared, name, objective, ranks, context.device)
            optimizer, frozen = build_optimizer(objective, recipe.stages[name], trainable), None
            if saved is None:
                position, state = Position(name, position.step, 0), {}
                seed_stage(recipe.seed, name, ranks.rank)
            else:
                frozen = saved.frozen
                _restore(context, objective, optimizer, saved, position)
            saved = None  # closes its files: pruning then frees their disk space
            position, stopped = run_stage(context, objective, optimizer, position, state, frozen)
            if stopped:
                return TrainResult(run, context.stop.requested, dropped=context.dropped)
            optimizer, objective.references = None, ()  # frees the memory of its moments, and of copies
            objective.teachers, objective.teacher_models = {}, {}
            objective = _end(context, objective, position)
    return TrainResult(run, None, dropped=context.dropped)


def _recorded(context: RunContext) -> AbstractContextManager[Callable[..., None]]:
    """Returns the session of this process in `run.json`, which the first rank writes."""
    if not context.ranks.first:
        return nullcontext(lambda **facts: None)
    device = context.device
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
    return session(context.run, device=name, threads=torch.get_num_threads(), processes=context.ranks.world)


def _open(context: RunContext, source: str | None, accept_data: bool) -> list[resuming.Change]:
    """Removes leftovers of a killed process. Starts a new run, or returns the changes of an existing one."""
    run, prepared = context.run, context.prepared
    for note in write.sweep(run):
        context.ranks.log_once(note)
    run.clear_temporary()
    for name in prepared.recipe.stages:
        clean_aside(run.model(name))
        clean_aside(run.best(name))
    changed = []
    if run.is_run:
        changed = resuming.changes(run, prepared, accept_data=accept_data, ranks=context.ranks.world)
    else:
        resuming.begin(run, prepared, source, context.ranks.world)
    check_space(run, checkpoint_room(checkpoint_bytes(prepared), prepared.recipe.output.keep))
    return changed


def _begin(
    context: RunContext, stage: str, objective: Objective | None, *, fresh: bool
) -> tuple[Objective, dict[str, list[nn.Parameter]]]:
    """Returns the objective at the start of a stage, and its trainable parameters by part. With `fresh` it has the
    weights that the stage begins with.

    One process reuses the objective that it has. Of several ranks, the first builds it on its host, like a
    single process, and sends each rank its shard.
    """
    prepared, ranks = context.prepared, context.ranks
    trainable: dict[str, list[nn.Parameter]] = {}
    if ranks.first:
        objective = objective or build_unsharded(context)
        if fresh:
            _start(objective, prepared, context.run, stage)
        section = prepared.recipe.stages[stage]
        trainable = build.set_stage(objective, prepared.plans[stage], section, seed=prepared.recipe.seed)
    if ranks.alone:
        assert objective is not None
        return objective, trainable
    own, trainable = fsdp.sharded(prepared, stage, ranks, context.device)
    fsdp.scatter_from_rank0(objective, own)
    return own, trainable


def _restore(
    context: RunContext, objective: Objective, optimizer: torch.optim.Optimizer, saved: Checkpoint, at: Position
) -> None:  # fmt: skip
    """Restores the tensors and the generators from a checkpoint."""
    restore_state(objective, optimizer, saved)
    if not saved.rng:
        ranks, seed = context.ranks, context.prepared.recipe.seed
        ranks.log_once(f"saved by another number of ranks: dropout is seeded again from step {at.step} on")
        seed_stage(seed, at.stage, ranks.rank, at.stage_step)


def _end(context: RunContext, objective: Objective, position: Position) -> Objective | None:
    """Writes the stage's model folder with full, merged weights. Returns the objective for the next stage."""
    stage = position.stage
    full = gathered(context, objective, stage)
    if full is not None:
        save_model(context.run.model(stage), full, context.prepared, stage, position.step, {})
        lora.merge(full.lmm.decoder)  # the next stage starts from merged weights
    context.ranks.barrier()
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
