"""A run from recipe to models: prepare, build, restore, every stage, save."""

from __future__ import annotations

import platform
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from lmmkit import assemble
from lmmkit.data.records import Records, pictures_digest
from lmmkit.errors import Problem, UserError, raise_all
from lmmkit.estimate import checkpoint_bytes
from lmmkit.malloc import keep_memory
from lmmkit.model import lora
from lmmkit.objective import Objective
from lmmkit.plan.explain import plan_text
from lmmkit.plan.prepare import Prepared, not_yet, prepare, writes_outside
from lmmkit.recipe import Recipe, diff, digest, dump, read_recipe, to_mapping
from lmmkit.rundir import RunDir, lock, read_json, write_json_atomic, write_text_atomic
from lmmkit.training import checkpoint, manifest
from lmmkit.training.checked import position_of
from lmmkit.training.log import Board, MetricsLog
from lmmkit.training.loop import Position, run_stage
from lmmkit.training.rng import seed_stage
from lmmkit.training.signals import Stop
from lmmkit.training.state import restore
from lmmkit.weights import own

if TYPE_CHECKING:
    from _typeshed import DataclassInstance


@dataclass(frozen=True)
class Finished:
    """How a run ended: its folder, and the signal that stopped it early, if one did."""

    run: RunDir
    signal: int | None


def train(
    recipe: Recipe | str | Path, *, out: str | Path | None = None, resume: bool = False,
    stage: str | None = None, trust_files: bool = False, source: str | None = None,
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

    Raises:
        UserError: bad recipe, data, folder. MachineError: no space, no memory.
    """
    name = None
    if not isinstance(recipe, Recipe):
        name, recipe = Path(recipe).stem, read_recipe(recipe)
    raise_all([*not_yet(recipe), *writes_outside(recipe)])
    prepared = prepare(recipe, trust_files=trust_files)
    device = assemble.device_here()
    assemble.backend(recipe, device)
    assemble.check_optimizers(recipe)
    assemble.check_origins(prepared.recipe, prepared.dims, prepared.origins, device)
    out = Path("runs") / (name or digest(recipe)[:12]) if out is None else Path(out)
    _check_stages(recipe, RunDir(out), stage, resume)
    run = RunDir.create(out, resume)
    if recipe.speed.threads:
        torch.set_num_threads(recipe.speed.threads)
    if recipe.speed.keep_memory and (why_not := keep_memory()):
        print(f"note: speed.keep_memory has no effect: {why_not}", file=sys.stderr)
    with lock(run), Stop() as stop:
        for note in checkpoint.sweep(run):
            print(f"note: {note}", file=sys.stderr)
        _check_same(run, prepared) if run.is_run else _open_run(run, prepared, source)
        objective = assemble.build(
            prepared.recipe, prepared.parts.components, prepared.dims, device, origins=prepared.origins,
            narrow=assemble.frozen_narrow(prepared.recipe),
        )  # fmt: skip
        checkpoint.check_space(run, checkpoint_bytes(prepared), keep=recipe.output.keep)
        saved = checkpoint.latest(run) if resume else None
        loaded = checkpoint.load(saved, verified=True) if saved else None
        position = _first(prepared, stage)
        if saved is not None and loaded is not None:
            position = position_of(loaded, saved, recipe, prepared.steps)
        with (
            MetricsLog(run.metrics) as metrics,
            Board(run.tb, position.step + 1 if resume else None) as board,
        ):
            if resume:
                metrics.truncate(position.step)
            prepared.parts.door.started(str(run.path), to_mapping(recipe), position.step)
            for name in _stages(recipe, position.stage, stage):
                if name != position.stage or loaded is None:
                    position = Position(name, position.step, 0)
                    _start(objective, prepared, run, name)
                    seed_stage(recipe.seed, name)
                learns = assemble.set_stage(
                    objective, prepared.plans[name], recipe.stages[name], seed=recipe.seed
                )
                optimizer = assemble.optimizer(objective, recipe.stages[name], learns)
                if saved is not None and loaded is not None and name == position.stage:
                    restore(objective, optimizer, loaded, saved)
                loaded = None
                position, stopped = run_stage(
                    prepared, objective, optimizer, position, run, metrics, board, stop, device
                )
                if stopped:
                    return Finished(run, stop.requested)
                updates = lora.updates(objective)
                lora.merge(objective.lmm.decoder)  # a model folder holds whole weights
                _save_model(objective, prepared, run, position, updates)
    return Finished(run, None)


def _open_run(run: RunDir, prepared: Prepared, source: str | None) -> None:
    """Writes what identifies the run; `run.json` last."""
    recipe = prepared.recipe
    write_text_atomic(run.recipe, source or dump(recipe))
    write_text_atomic(run.resolved, dump(recipe))
    write_text_atomic(run.plan, plan_text(prepared))
    write_json_atomic(run.run_json, _identity(prepared))


def _identity(prepared: Prepared) -> dict:
    return {
        "format": 1,
        "recipe": digest(prepared.recipe),
        "plans": {stage: plan.digest for stage, plan in prepared.plans.items()},
        "data": {name: _data_identity(records) for name, records in sorted(prepared.sources.items())},
        "plugins": {name: prepared.parts.origin(name) for name in prepared.parts.components},
        "observers": list(prepared.parts.door.observers),
        "root": str(Path(prepared.recipe.root).resolve()),
        "versions": {"python": platform.python_version(), "torch": torch.__version__},
    }


def _data_identity(records: Records) -> dict[str, object]:
    """What tells a source from another of as many rows. Where it lies does not matter."""
    return {
        "rows": len(records),
        "records": f"{records.path.stat().st_size} bytes, crc32 {manifest.crc32(records.path):08x}",
        "pictures": pictures_digest(records),
        "template": records.template,
        "image_shape": records.image_shape,
    }


def _check_same(run: RunDir, prepared: Prepared) -> None:
    """A resumed run must be the same mathematics on the same data."""
    before, now = read_json(run.run_json), _identity(prepared)
    changed = [
        (d.key, str(d.b), str(d.a))
        for d in (
            diff(read_recipe(run.resolved), prepared.recipe) if before.get("recipe") != now["recipe"] else ()
        )
        if d.section_class in ("mathematics", "data")
    ]
    for section in ("plans", "data"):
        changed += _changes(section, before.get(section), now[section])
    changed = list({key: (key, got, want) for key, got, want in changed}.values())
    mend = f"Resume with {run.resolved} on the same data, or begin a new run."
    raise_all(
        Problem("resume/changed", f"{run.path}: {key}", got, f"{want}, as the run began", mend)
        for key, got, want in changed
    )


def _changes(key: str, before: object, now: object) -> Iterator[tuple[str, str, str]]:
    """(dotted key, now, before) of every value that differs."""
    if isinstance(before, Mapping) and isinstance(now, Mapping):
        for name in sorted(before.keys() | now.keys()):
            yield from _changes(f"{key}.{name}", before.get(name), now.get(name))
    elif before != now:
        got, want = ("nothing" if value is None else str(value) for value in (now, before))
        yield key, got, want


def _check_stages(recipe: Recipe, run: RunDir, only: str | None, resume: bool) -> None:
    """The stage asked for exists, and so does every model to start from that the run will not write."""
    names = list(recipe.stages)
    if only is not None and only not in names:
        raise UserError(
            Problem("train/no-stage", "--stage", f"`{only}`", f"one of {names}", "Name one of these.")
        )
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
    where, want = recipe.where(f"stages.{stage}.start"), "a model folder to start from"
    mend = f"Name one (`--set stages.{stage}.start=RUN/model/STAGE`), or train all stages in turn."
    raise UserError(Problem("train/no-start", where, f"no model in {folder}", want, mend))


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


def _save_model(
    objective: Objective, prepared: Prepared, run: RunDir, position: Position, updates: Mapping[str, Tensor]
) -> None:
    plan = prepared.plans[position.stage]
    config = {
        "stage": position.stage,
        "step": position.step,
        "plan": plan.digest,
        "plugins": {name: prepared.parts.origin(name) for name in sorted(plan.active)},
        "speaks_through": list(plan.speaks_through),
        "root": str(Path(prepared.recipe.root).resolve()),
        "speaks": vars_of(prepared.recipe.model.speaks),
        "model": to_mapping(prepared.recipe)["model"],
    }
    modules, carried = assemble.modules(objective), {}
    for origin in prepared.origins:
        carried |= origin.carried(modules)
    own.write(
        run.model(position.stage),
        objective,
        config=config,
        recipe=dump(prepared.recipe),
        tokenizer=prepared.tokenizer,
        carried=carried,
        updates=updates,
    )


def vars_of(section: DataclassInstance) -> Mapping[str, object]:
    """A recipe section as a plain mapping."""
    return {field.name: getattr(section, field.name) for field in fields(section)}
