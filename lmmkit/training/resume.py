"""Identity of a run, and changes at a resume: every change is reported, some are refused.

The class of the changed key decides (`recipe/diff.py`): a change of mathematics is refused; so is a change of
data, unless it is accepted; speed and output may change freely.
"""

from __future__ import annotations

import platform
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import torch

from lmmkit.errors import Problem, raise_all
from lmmkit.errors.training import CHANGED
from lmmkit.plan.explain import plan_text
from lmmkit.plan.prepare import Prepared
from lmmkit.recipe import diff, digest, dump, read_recipe
from lmmkit.runs.files import read_json, write_json_atomic, write_text_atomic
from lmmkit.runs.run_folder import RunFolder
from lmmkit.training.monitoring.metrics_log import MetricsLog

ACCEPT = "--accept-data-change"


@dataclass(frozen=True)
class Change:
    """Describes one value that differs from that of the run."""

    key: str
    kind: str
    before: str
    now: str

    def __str__(self) -> str:
        return f"{self.key} ({self.kind}): {self.before} -> {self.now}"


def begin(run: RunFolder, prepared: Prepared, source: str | None) -> None:
    """Writes the files that identify the run; `run.json` last."""
    write_text_atomic(run.recipe, source or dump(prepared.recipe))
    _write(run, prepared)


def changes(run: RunFolder, prepared: Prepared, *, accept_data: bool) -> list[Change]:
    """Returns how recipe, data, plans and versions differ from those of the run.

    Raises `UserError` with every change that a resume does not allow.
    """
    before, now = read_json(run.run_json), identity(prepared)
    differences = diff(read_recipe(run.resolved), prepared.recipe)
    found = [Change(d.key, d.section_class, str(d.a), str(d.b)) for d in differences]
    for section, kind in (
        ("plans", "mathematics"),
        ("teachers", "mathematics"),
        ("data", "data"),
        ("versions", "machine"),
    ):
        found += [
            Change(k, kind, b, n) for k, b, n in _changed(section, before.get(section), now.get(section))
        ]
    found = list({change.key: change for change in reversed(found)}.values())[::-1]
    allowed = {"speed", "output", "machine"} | ({"data"} if accept_data else set())
    raise_all(_refused(run, change) for change in found if change.kind not in allowed)
    return found


def continue_run(run: RunFolder, prepared: Prepared, changed: list[Change], step: int) -> None:
    """Prints the changes, appends them to resumes.jsonl, and updates the identity files of the run."""
    for change in changed:
        print(f"note: changed since the run stopped: {change}", file=sys.stderr)
    listed = [{"key": c.key, "class": c.kind, "before": c.before, "now": c.now} for c in changed]
    when = datetime.now(UTC).isoformat(timespec="seconds")
    with MetricsLog(run.resumes) as file:
        file.write({"at": when, "step": step, "changes": listed, "versions": identity(prepared)["versions"]})
    if changed:
        _write(run, prepared)


def identity(prepared: Prepared) -> dict:
    """Returns the identity of a run: digests of recipe, plans and training data, plugins and versions."""
    recipe = prepared.recipe
    teachers = {name: prepared.teachers[name].identity() for name in prepared.teachers}
    learned = {name for stage in recipe.stages.values() for name in stage.data}
    return {
        "format": 1,
        "recipe": digest(recipe),
        "plans": {stage: plan.digest for stage, plan in prepared.plans.items()},
        "data": {name: prepared.sources[name].identity() for name in sorted(learned)},
        "plugins": {name: prepared.instances.origin(name) for name in prepared.instances.components},
        "observers": list(prepared.instances.registry.observers),
        "root": str(Path(recipe.root).resolve()),
        **({"teachers": teachers} if teachers else {}),
        "versions": {"python": platform.python_version(), "torch": torch.__version__},
    }


def _write(run: RunFolder, prepared: Prepared) -> None:
    write_text_atomic(run.resolved, dump(prepared.recipe))
    write_text_atomic(run.plan, plan_text(prepared))
    write_json_atomic(run.run_json, identity(prepared))


def _refused(run: RunFolder, change: Change) -> Problem:
    where, accept = f"{run.path}: {change.key}", ""
    if change.kind == "data":
        accept = f" If the change is intended: `{ACCEPT}`; resumes.jsonl keeps what the data was."
    return CHANGED.at(where, got=change.now, before=change.before, recipe=run.resolved, accept=accept)


def _changed(key: str, before: object, now: object) -> Iterator[tuple[str, str, str]]:
    """Yields (dotted key, before, now) for every value that differs."""
    if isinstance(before, Mapping) and isinstance(now, Mapping):
        for name in sorted(before.keys() | now.keys()):
            yield from _changed(f"{key}.{name}", before.get(name), now.get(name))
    elif before != now:
        was, is_ = ("nothing" if value is None else str(value) for value in (before, now))
        yield key, was, is_
