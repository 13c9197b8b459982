"""The folder where the runs of grids are kept by key, shared between grids.

STORE/  runs/KEY/  recipes/KEY.yaml  logs/KEY-train.log  logs/KEY-eval.log  evaluated/KEY.json  trials/SHAPE.json
        locks/KEY  locks/outcomes  grids/NAME/ablation.json
"""

from __future__ import annotations

import fcntl
import json
import os
import shutil
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import count
from pathlib import Path
from typing import Any

from lmmkit.ablation.planned_runs import GridRun, StageRun
from lmmkit.errors import UserError, raise_all
from lmmkit.errors.ablation import GRID_OTHER_DATA, GRID_OTHER_QUESTIONS
from lmmkit.errors.training import RUN_DAMAGED
from lmmkit.recipe import dump, read_recipe
from lmmkit.runs.files import finite, read_json, write_json_atomic, write_text_atomic
from lmmkit.runs.run_folder import RunFolder
from lmmkit.runs.sessions import cpu_seconds_in


@dataclass(frozen=True)
class Cost:
    """Holds what a stage took. `cpu_seconds`: of its processes; None if one of them was killed. `wall_seconds`: of the
    steps alone, and None, as `tokens`, if no step was logged."""

    steps: int
    tokens: float | None
    wall_seconds: float | None
    cpu_seconds: float | None


@dataclass(frozen=True)
class Store:
    """Names the files of a store and reads what is done. `root` is absolute."""

    root: Path

    def run(self, key: str) -> RunFolder:
        """Returns the run folder of a stage."""
        return RunFolder(self.root / "runs" / key)

    def recipe(self, key: str) -> Path:
        """Returns the path of the recipe that trains a stage."""
        return self.root / "recipes" / f"{key}.yaml"

    @property
    def logs(self) -> Path:
        """Returns the folder of what the commands print."""
        return self.root / "logs"

    def trial(self, shape: str) -> Path:
        """Returns the path of what was measured of a shape."""
        return self.root / "trials" / f"{shape}.json"

    def grid(self, name: str) -> Path:
        """Returns the folder of the outcome of a grid."""
        return self.root / "grids" / name

    def keep_outcome(self, path: Path, summary: Mapping[str, Any]) -> Path | None:
        """Renames an outcome on other data folders, or of another grid file of this name, which `summary` would
        replace; returns its new path, or None if there is none, or `summary` has all that is in it."""
        before = _read_outcome(path)
        if not before or _same_origin(before, summary) or _has_all(summary, before):
            return None
        names = "-".join(Path(str(root)).name for root in before["roots"])
        for number in count(1):
            to = path.with_name(f"{path.stem}-{names:.100}{f'-{number}' * (number > 1)}{path.suffix}")
            if not to.exists() or _same_origin(before, _read_outcome(to)):
                break
        path.replace(to)
        return to

    def evaluated(self, key: str) -> Path:
        """Returns the path of the note which questions a run has answered."""
        return self.root / "evaluated" / f"{key}.json"

    def model(self, stage: StageRun) -> Path:
        """Returns the model folder that a stage writes."""
        return self.run(stage.key).model(stage.stage)

    def is_trained(self, stage: StageRun) -> bool:
        """Returns whether a stage is trained: its model folder is written as a whole, at the end."""
        return (self.model(stage) / "config.json").is_file()

    def write_recipe(self, stage: StageRun) -> Path:
        """Writes the recipe that trains a stage from the model of the one before; returns its path."""
        recipe, path = stage.recipe, self.recipe(stage.key)
        if stage.before is not None:
            section = replace(recipe.stages[stage.stage], start=str(self.model(stage.before)))
            recipe = replace(recipe, stages={**recipe.stages, stage.stage: section})
        path.parent.mkdir(parents=True, exist_ok=True)
        write_text_atomic(path, dump(recipe))
        return path

    def missing_tasks(self, run: GridRun) -> list[str]:
        """Returns the tasks of a run that are not evaluated.

        Raises `UserError` for tasks that were evaluated with other questions or settings.
        """
        folder, path = self.run(run.key), self.evaluated(run.key)
        known = read_json(path) if path.is_file() else {}
        raise_all(
            GRID_OTHER_QUESTIONS.at(
                f"{folder.path}: {task}",
                got="answers to other questions, or with other settings",
                other="the grid",
            )
            for task, questions in run.questions.items()
            if task in known and known[task] != questions
        )
        there = folder.read_results() if folder.is_run and folder.results.is_file() else {}
        return [task for task in run.questions if task not in known or task not in there]

    def note_evaluated(self, run: GridRun) -> None:
        """Notes which questions a run has answered."""
        self._write_note(run, self.evaluated(run.key))

    def write_pending_note(self, run: GridRun) -> Path:
        """Writes the note of a run that a script will evaluate, which then copies it to `evaluated`."""
        path = self.root / "evaluated" / f"{run.key}.pending"
        self._write_note(run, path)
        return path

    def _write_note(self, run: GridRun, to: Path) -> None:
        path = self.evaluated(run.key)
        to.parent.mkdir(parents=True, exist_ok=True)
        write_json_atomic(to, {**(read_json(path) if path.is_file() else {}), **run.questions})

    def prepare_evaluation(self, run: GridRun) -> None:
        """Gives the run folder of the last stage the models of the earlier ones, as links to the same files, and the
        tasks of this grid. Then it is like the folder of one run of all stages."""
        folder = self.run(run.key)
        for stage in run.stages[:-1]:
            to, aside = folder.model(stage.stage), folder.path / "model" / f".{stage.stage}.tmp"
            if not (to / "config.json").is_file():
                shutil.rmtree(aside, ignore_errors=True)
                shutil.copytree(self.model(stage), aside, copy_function=_link)
                aside.rename(to)
        before = read_recipe(folder.resolved, root=Path(run.last.recipe.root))
        now = replace(before, evaluate=run.last.recipe.evaluate, data={**before.data, **run.last.recipe.data})
        if now != before:
            write_text_atomic(folder.resolved, dump(now))

    def require_own_data(self, run: GridRun) -> None:
        """Raises `UserError` for stages that were trained on other data than their keys say."""
        problems = []
        for stage in run.stages:
            path = self.run(stage.key).run_json
            recorded = read_json(path).get("data")
            there = recorded if isinstance(recorded, dict) else {}
            problems += [
                GRID_OTHER_DATA.at(
                    f"{path}: data.{name}",
                    got=f"{json.dumps(there.get(name)):.300}",
                    expected=f"{json.dumps(known):.300}",
                )
                for name, known in stage.data.items()
                if there.get(name) != json.loads(json.dumps(known))
            ]
        raise_all(problems)

    def cpu_seconds(self, stage: StageRun) -> float | None:
        """Returns the CPU seconds of all processes that trained a stage; None if they are not all known."""
        return cpu_seconds_in(read_json(self.run(stage.key).run_json))

    def cost(self, stage: StageRun) -> Cost:
        """Returns what a trained stage took. Where not all steps are logged, the others count as these do.

        Raises `UserError` if the last logged steps are missing, or a line has no such figures.
        """
        run, begin = self.run(stage.key), stage.steps_before
        lines = [line for line in run.read_metrics() if "tokens" in line]
        fix = "Restore the file, or remove the run folder; the next call trains it again."
        # by the recipe of the run: another grid may have trained it, and logged other steps
        each, end = read_recipe(run.resolved).output.log_every, begin + stage.steps
        last = lines[-1].get("step") if lines else None
        if (expected := end - end % each) > begin and last != expected:
            got, content = f"{len(lines):,} logged steps, the last one {last}", f"steps until {expected:,}"
            raise UserError(RUN_DAMAGED.at(str(run.metrics), got=got, content=content, fix=fix))
        raise_all(
            RUN_DAMAGED.at(
                f"{run.metrics}, step {line.get('step')}", got=f"{key}: {line.get(key)!r:.40}", content="a number",
                fix=fix,
            )
            for line in lines
            for key in ("tokens", "seconds")
            if (value := finite(line.get(key))) is None or value < 0
        )  # fmt: skip
        tokens, seconds = (
            stage.steps / len(lines) * sum(line[key] for line in lines) if lines else None
            for key in ("tokens", "seconds")
        )
        return Cost(
            steps=stage.steps, tokens=tokens, wall_seconds=seconds, cpu_seconds=self.cpu_seconds(stage)
        )

    def claim(self, key: str) -> int | None:
        """Locks a key; returns the handle of the lock, or None if another process has it.

        A command that inherits the handle keeps the lock when the grid itself is killed.
        """
        path = self.root / "locks" / key
        path.parent.mkdir(parents=True, exist_ok=True)
        handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(handle)
            return None
        return handle

    @contextmanager
    def alone(self) -> Iterator[None]:
        """Waits until no other process writes outcomes, then runs the block alone."""
        path = self.root / "locks" / "outcomes"
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("w") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            yield

    def is_busy(self, key: str) -> bool:
        """Returns whether some process works on a run."""
        if not (self.root / "locks" / key).exists():
            return False
        handle = self.claim(key)
        if handle is not None:
            os.close(handle)
        return handle is None


def measured_numbers(
    path: Path, names: Iterable[str], *, section: str | None = None, above_zero: bool = False
) -> dict[str, float]:
    """Returns the numbers of these names in a file of what was measured, or in a section of it. Raises `UserError` for
    other values, those below 0, and with `above_zero` 0."""
    again, least = "Remove the file, to measure again.", "above 0" if above_zero else "0 or more"
    found = read_json(path, hint=again)
    values = found if section is None else found.get(section)
    values = values if isinstance(values, dict) else {}
    numbers = {name: finite(values.get(name)) for name in names}
    raise_all(
        RUN_DAMAGED.at(
            f"{path}: {name}", got=f"{values.get(name)!r:.40}", content=f"a number, {least}", fix=again
        )
        for name, number in numbers.items()
        if number is None or number < 0 or (above_zero and not number)
    )
    return {name: number for name, number in numbers.items() if number is not None}


def _read_outcome(path: Path) -> Mapping[str, Any]:
    """Returns the outcome of a grid; {} for a file that is none."""
    try:
        found = read_json(path) if path.is_file() else {}
    except UserError:
        return {}
    return found if isinstance(found.get("roots"), list) and found["roots"] else {}


def _same_origin(a: Mapping[str, Any], b: Mapping[str, Any]) -> bool:
    """Returns whether two outcomes are of one grid file, as far as they name it, and on the same data folders."""
    roots = [sorted(map(str, each.get("roots", ()))) for each in (a, b)]
    files = {each["file"] for each in (a, b) if isinstance(each.get("file"), str)}
    return roots[0] == roots[1] and len(files) < 2


def _has_all(outcome: Mapping[str, Any], before: Mapping[str, Any]) -> bool:
    """Returns whether an outcome has the runs and the measures of another one, as where grid and data were moved. More
    data folders make other means."""
    known, old = _content(outcome), _content(before)
    return len(outcome["roots"]) == len(before["roots"]) and bool(old) and old <= known


def _content(outcome: Mapping[str, Any]) -> set[tuple[str, ...]]:
    """Returns the keys of all runs of an outcome, by arm, and its measures; nothing if a part of them is not there."""
    try:
        runs = {(arm["variant"], arm["equal"], run["key"]) for arm in outcome["arms"] for run in arm["runs"]}
        return runs | set(outcome["measures"].items())
    except (AttributeError, KeyError, TypeError):
        return set()


def _link(source: str, target: str) -> None:
    """Links a file, or copies it where the file system has no links."""
    try:
        os.link(source, target)
    except OSError:
        shutil.copy2(source, target)
