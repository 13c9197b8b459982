"""The folder where the runs of grids are kept by key, shared between grids.

STORE/  runs/KEY/  recipes/KEY.yaml  logs/KEY-train.log  logs/KEY-eval.log  costs/KEY.jsonl  evaluated/KEY.json
        locks/KEY  trials/SHAPE.json  grids/NAME/ablation.json
"""

from __future__ import annotations

import fcntl
import json
import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from lmmkit.ablation.stage_runs import GridRun, StageRun
from lmmkit.errors import raise_all
from lmmkit.errors.ablation import GRID_OTHER_DATA, GRID_OTHER_QUESTIONS
from lmmkit.recipe import dump, read_recipe
from lmmkit.runs.files import read_json, read_jsonl, write_json_atomic, write_text_atomic
from lmmkit.runs.run_folder import RunFolder


@dataclass(frozen=True)
class Cost:
    """Holds what a stage took. `cpu_seconds`: of the whole processes; None if one of them was killed, or was started by
    another program. `wall_seconds`: of the steps alone."""

    steps: int
    tokens: int
    wall_seconds: float
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
        folder, path = self.run(run.key), self.root / "evaluated" / f"{run.key}.json"
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
        path = self.root / "evaluated" / f"{run.key}.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        write_json_atomic(path, {**(read_json(path) if path.is_file() else {}), **run.questions})

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

    def begin_process(self, key: str, work: str) -> None:
        """Notes that a process begins to work on a run: `train` or `eval`."""
        self._note(key, {"work": work, "event": "begin"})

    def end_process(self, key: str, work: str, cpu_seconds: float, wall_seconds: float) -> None:
        """Notes that a process has ended, and what it took."""
        self._note(
            key, {"work": work, "event": "end", "cpu_seconds": cpu_seconds, "wall_seconds": wall_seconds}
        )

    def seconds(self, key: str, work: str) -> tuple[float, float] | None:
        """Returns the CPU and wall seconds of all processes that worked on a run; None if they are not all known."""
        lines = [line for line in read_jsonl(self._costs(key)) if line["work"] == work]
        ends = [line for line in lines if line["event"] == "end"]
        if not ends or 2 * len(ends) != len(lines):
            return None
        return sum(line["cpu_seconds"] for line in ends), sum(line["wall_seconds"] for line in ends)

    def cost(self, stage: StageRun) -> Cost:
        """Returns what a trained stage took."""
        lines = [line for line in self.run(stage.key).read_metrics() if "tokens" in line]
        found, each = self.seconds(stage.key, "train"), stage.recipe.output.log_every
        return Cost(
            steps=stage.steps, tokens=each * sum(line["tokens"] for line in lines),
            wall_seconds=each * sum(line["seconds"] for line in lines),
            cpu_seconds=found[0] if found is not None else None,
        )  # fmt: skip

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

    def is_busy(self, key: str) -> bool:
        """Returns whether some process works on a run."""
        if not (self.root / "locks" / key).exists():
            return False
        handle = self.claim(key)
        if handle is not None:
            os.close(handle)
        return handle is None

    def _costs(self, key: str) -> Path:
        return self.root / "costs" / f"{key}.jsonl"

    def _note(self, key: str, line: Mapping[str, Any]) -> None:
        path = self._costs(key)
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")


def _link(source: str, target: str) -> None:
    """Links a file, or copies it where the file system has no links."""
    try:
        os.link(source, target)
    except OSError:
        shutil.copy2(source, target)
