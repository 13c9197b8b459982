"""Finds the runs below a folder, with the state, the last step and the figures of each."""

from __future__ import annotations

import os
import shlex
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from lmmkit.errors import UserError
from lmmkit.runs.files import finite, is_file, read_json
from lmmkit.runs.metrics import last_records
from lmmkit.runs.run_folder import RunFolder
from lmmkit.runs.run_lock import is_locked
from lmmkit.runs.sessions import cpu_seconds_in, sessions_in

RunState = Literal["running", "stopped", "done", "damaged"]
BEST = "best of "  # begins the name of the figure by which the best model of a stage was chosen
RECENT = 20  # the loss is a mean over so many logged steps
TAIL = 1 << 16  # bytes at the end of metrics.jsonl that are read for them


@dataclass(frozen=True, kw_only=True)
class RunSummary:
    """Holds what `lmmkit runs` shows of a run.

    `figures`: the values in `results.json` as "TASK/FIGURE", in its order, and of the best model of each stage.
    `loss`: mean of the last logged steps. `problem`: why a run is "damaged".
    """

    run: RunFolder
    state: RunState
    recipe: str = ""
    stage: str = ""
    step: int = 0
    loss: float | None = None
    started: str = ""
    cpu_seconds: float | None = None
    figures: Mapping[str, float] = field(default_factory=dict)
    problem: str = ""


def find_runs(folder: Path) -> Iterator[RunFolder]:
    """Yields the runs in a folder and below it, by path. Links and hidden folders are not followed."""
    for path, folders, files in os.walk(folder):
        if "run.json" in files:
            yield RunFolder(Path(path))
            folders.clear()
        folders[:] = sorted(name for name in folders if not name.startswith("."))


def summarise_run(run: RunFolder) -> RunSummary:
    """Returns the summary of a run. A damaged file is its `problem`, so that other runs can still be listed."""
    try:
        facts = read_json(run.run_json)
        sessions, stages = sessions_in(facts), list(_mapping(facts.get("plans")))
        steps = _recent_steps(run.metrics)
        losses = [loss for record in steps if (loss := finite(record["loss"])) is not None]
        last = steps[-1] if steps else {}
        return RunSummary(
            run=run, state=_state(run, stages), recipe=_recipe(sessions, facts),
            stage=str(last.get("stage", "")), step=int(last.get("step", 0)),
            loss=sum(losses) / len(losses) if losses else None,
            started=str(sessions[0].get("started", "")) if sessions else "",
            cpu_seconds=cpu_seconds_in(facts),
            figures=_figures(run, stages),
        )  # fmt: skip
    except UserError as error:
        return RunSummary(run=run, state="damaged", problem=str(error.problems[0]))


def _state(run: RunFolder, stages: Sequence[str]) -> RunState:
    if is_locked(run):
        return "running"
    done = bool(stages) and is_file(run.model(stages[-1]) / "config.json")
    return "done" if done else "stopped"  # the model of an earlier stage may have been removed


def _recipe(sessions: Sequence[Mapping[str, Any]], facts: Mapping[str, Any]) -> str:
    """Returns the recipe as the first command named it; else the beginning of its hash."""
    try:
        words = shlex.split(str(sessions[0]["command"])) if sessions else []
    except (KeyError, ValueError):
        words = []
    if "train" in words[:-1]:
        return Path(words[words.index("train") + 1]).name.removesuffix(".yaml")
    return str(facts.get("recipe", ""))[:8]


def _recent_steps(path: Path) -> list[dict[str, Any]]:
    """Returns the last logged steps of the newest stage, at most `RECENT`, from the end of metrics.jsonl."""
    records = [record for record in last_records(path, TAIL) if "loss" in record]
    return [record for record in records[-RECENT:] if record.get("stage") == records[-1].get("stage")]


def _figures(run: RunFolder, stages: Sequence[str]) -> dict[str, float]:
    results = read_json(run.results) if run.results.is_file() else {}
    found: dict[str, float] = {}
    for task, figures in results.items():
        for name, figure in _mapping(figures).items():
            value = finite(_mapping(figure).get("value"))
            if value is not None:
                found[f"{task}/{name}"] = value
    for stage in stages:
        config = run.best(stage) / "config.json"
        best = _mapping(read_json(config).get("best")) if is_file(config) else {}
        if (value := finite(best.get("value"))) is not None:
            found[f"{BEST}{stage}: {best.get('metric')}"] = value
    return found


def _mapping(value: Any) -> Mapping[str, Any]:
    """Returns a value that a file should have as a mapping; {} for any other."""
    return value if isinstance(value, dict) else {}
