"""Prints the commands of a grid for other starters: torchrun in one shell script, or jobs of SLURM."""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Sequence
from typing import Literal

from lmmkit.ablation.store import Store
from lmmkit.commands.experiments.grid_work import EvaluateRun, TrainStage

TORCHRUN = "torchrun --standalone --nproc-per-node ${GPUS:-1} -m lmmkit"


def command_lines(
    store: Store, work: Sequence[TrainStage | EvaluateRun], starter: Literal["torchrun", "slurm"]
) -> Iterator[str]:
    """Yields the lines of a shell script that does what is left of a grid, and writes the recipes that it reads. The
    same grid then finds everything done, and prints its table."""
    yield "#!/bin/sh"
    yield "set -e"
    variables: dict[str, str] = {}
    for number, each in enumerate((each for each in work if not each.is_done()), 1):
        lines = _lines(store, each)
        if starter == "torchrun":
            yield from lines
            continue
        needed = [variables[name] for name in each.after if name in variables]
        after = f" --dependency=afterok:{':'.join(f'${name}' for name in needed)}" if needed else ""
        variables[each.name] = f"job{number}"
        wrapped = shlex.quote(" && ".join(lines))
        yield f"job{number}=$(sbatch --parsable $SBATCH_OPTIONS{after} --wrap {wrapped})"


def _lines(store: Store, work: TrainStage | EvaluateRun) -> list[str]:
    """Returns the lines of one command; for an evaluation also those that link the models of earlier stages, and that
    note which questions are answered."""
    lines, notes = [], []
    if isinstance(work, EvaluateRun):
        if all(map(store.is_trained, work.run.stages)):
            store.prepare_evaluation(work.run)
        note = store.write_pending_note(work.run)
        notes = [f"cp {shlex.quote(str(note))} {shlex.quote(str(store.evaluated(work.run.key)))}"]
        models = store.run(work.run.key).path / "model"
        lines = [
            f"{{ [ -e {shlex.quote(str(models / stage.stage))} ] || "
            f"cp -al {shlex.quote(str(store.model(stage)))} {shlex.quote(str(models))}/; }}"
            for stage in work.run.stages[:-1]
        ]
    return [*lines, f"{TORCHRUN} {shlex.join(work.words())}", *notes]
