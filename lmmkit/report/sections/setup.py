"""How the runs were made: recipe differences by class, environment, and the commands to make them again."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from lmmkit.progress import duration
from lmmkit.recipe import ABSENT, diff, flow_text
from lmmkit.report.loaded_run import DRAWN, LoadedRun
from lmmkit.runs.files import finite

CLASSES = {
    "mathematics": "change what is computed", "data": "change what is read",
    "speed": "change the time and at most the last digits", "output": "change what is written and measured",
}  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class RecipeKey:
    """Holds a key in which recipes differ, with its value in each drawn run; None where it is absent. `others`: the
    values of further runs, each once."""

    key: str
    values: Sequence[str | None]
    others: Sequence[str | None] = ()


@dataclass(frozen=True, kw_only=True)
class Setup:
    """Holds the section. `differences`: by class. `compared`: the drawn runs with recipes. `others`: the number of
    further runs that are compared. `facts`: a name, and its value in each drawn run."""

    differences: dict[str, list[RecipeKey]]
    compared: Sequence[int]
    others: int
    facts: Sequence[tuple[str, Sequence[str]]]
    commands: Sequence[str]


def setup_of(runs: Sequence[LoadedRun], task: str | None) -> Setup:
    """Returns the section."""
    compared = [i for i, run in enumerate(runs) if run.recipe is not None]
    return Setup(
        differences=_differences([runs[i] for i in compared]), compared=compared[:DRAWN],
        others=len(compared[DRAWN:]), facts=_facts(runs[:DRAWN]), commands=_commands(runs, task),
    )  # fmt: skip


def _differences(runs: Sequence[LoadedRun]) -> dict[str, list[RecipeKey]]:
    """Returns the keys in which any recipe differs from the first, by class."""
    found: dict[tuple[str, str], list[str | None]] = {}
    for i, run in enumerate(runs[1:], 1):
        assert run.recipe is not None and runs[0].recipe is not None, "they have recipes"
        for each in diff(runs[0].recipe, run.recipe):
            values = found.setdefault((each.section_class, each.key), [_value(each.a)] * len(runs))
            values[i] = _value(each.b)
    return {
        kind: [
            RecipeKey(key=key, values=values[:DRAWN], others=list(dict.fromkeys(values[DRAWN:])))
            for (section, key), values in found.items()
            if section == kind
        ]
        for kind in CLASSES
        if any(section == kind for section, _ in found)
    }


def _value(value: Any) -> str | None:
    if value == ABSENT:
        return None
    return flow_text(value) if isinstance(value, dict | list) else str(value)


def _facts(runs: Sequence[LoadedRun]) -> list[tuple[str, list[str]]]:
    of_runs = [_of_run(run) for run in runs]
    names = dict.fromkeys(name for facts in of_runs for name in facts)
    return [(name, [facts.get(name, "") for facts in of_runs]) for name in names]


def _of_run(run: LoadedRun) -> dict[str, str]:
    sessions = run.sessions
    first, last = (sessions[0], sessions[-1]) if sessions else ({}, {})
    found = {
        "model": run.facts.get("origin"), "command": first.get("command"), "lmmkit": last.get("version"),
        **dict(_mapping(run.facts.get("versions")).items()),
        "machine": last.get("machine"), "device": last.get("device"), "threads": last.get("threads"),
        "processes": last.get("processes"), "started": first.get("started"), "ended": last.get("ended"),
        "sessions": f"{len(sessions)} ({len(sessions) - 1} resumes)" if len(sessions) > 1 else None,
        "CPU time": None if run.cpu_seconds is None else duration(run.cpu_seconds),
        "parameters": _count(run.facts.get("parameters")),
        **{f"trained in {name}": _count(n) for name, n in _mapping(run.facts.get("trained")).items()},
        "plugins": ", ".join(f"{k} ({v})" for k, v in _mapping(run.facts.get("plugins")).items()) or "none",
        "recipe hash": str(run.facts.get("recipe", ""))[:12],
        **{f"plan hash, {name}": plan for name, plan in _mapping(run.facts.get("plans")).items()},
        **{f"data, {name}": _source(data) for name, data in _mapping(run.facts.get("data")).items()},
    }  # fmt: skip
    return {name: str(value) for name, value in found.items() if value not in (None, "")}


def _source(data: object) -> str:
    return "; ".join(f"{key} {value}" for key, value in _mapping(data).items()) or str(data)


def _count(value: object) -> str | None:
    number = finite(value)
    return None if number is None else f"{number:,.0f}"


def _mapping(value: object) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


def _commands(runs: Sequence[LoadedRun], task: str | None) -> list[str]:
    """Returns the commands that make all runs again, and the page."""
    lines: list[str] = []
    folders = [str(run.folder.path) if "origin" in run.facts else f"runs/{run.name}" for run in runs]
    for run, folder in zip(runs, folders, strict=True):
        if "origin" in run.facts:  # no run of this folder: `lmmkit demo` wrote it around a trained model
            lines.append(shlex.join(["lmmkit", "demo", str(run.folder.path.parent)]))
            continue
        root = ["--root", run.facts["root"]] if isinstance(run.facts.get("root"), str) else []
        lines.append(shlex.join(["lmmkit", "train", str(run.folder.resolved), *root, "--out", folder]))
        if run.results:
            lines.append(shlex.join(["lmmkit", "eval", folder]))
    return [*lines, shlex.join(["lmmkit", "report", *folders, *(["--on", task] if task else [])])]
