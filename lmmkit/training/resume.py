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
from shlex import quote

import torch

from lmmkit.errors import Problem, raise_all
from lmmkit.errors.training import CHANGED, OTHER_CUT, OTHER_RANKS
from lmmkit.plan.explain import plan_text
from lmmkit.plan.prepare import Prepared
from lmmkit.recipe import diff, digest, dump, is_cut, read_recipe
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


def begin(run: RunFolder, prepared: Prepared, source: str | None, ranks: int = 1) -> None:
    """Writes the files that identify the run; `run.json` last. `ranks`: how many train it."""
    write_text_atomic(run.recipe, source or dump(prepared.recipe))
    _write(run, prepared, ranks)


def changes(run: RunFolder, prepared: Prepared, *, accept_data: bool, ranks: int = 1) -> list[Change]:
    """Returns how recipe, data, plans, versions and the number of ranks differ from those of the run.

    Where a term does not add up over micro-batches, what cuts a step is mathematics.

    Raises `UserError` with every change that a resume does not allow.
    """
    now = identity(prepared, ranks)
    before = {"not_additive": {}, "ranks": ranks} | read_json(run.run_json)  # earlier versions wrote neither
    apart = now["not_additive"] or before["not_additive"]
    differences = diff(read_recipe(run.resolved), prepared.recipe, cut=bool(apart))
    found = [Change(d.key, d.section_class, str(d.a), str(d.b)) for d in differences]
    kinds = {
        "plans": "mathematics", "not_additive": "mathematics", "teachers": "mathematics", "data": "data",
        "versions": "machine", "ranks": "mathematics" if apart else "speed",
    }  # fmt: skip
    for section, kind in kinds.items():
        both = before.get(section), now.get(section)
        found += [Change(k, kind, b, n) for k, b, n in _changed(section, *both)]
    found = list({change.key: change for change in reversed(found)}.values())[::-1]
    allowed = {"speed", "output", "machine"} | ({"data"} if accept_data else set())
    names = {name for plan in prepared.plans.values() for name in plan.not_additive} | set(run.cut()[0])
    terms = ", ".join(f"`{name}`" for name in sorted(names))
    raise_all(
        _refused(run, change, terms, prepared.recipe.root) for change in found if change.kind not in allowed
    )
    return found


def continue_run(
    run: RunFolder, prepared: Prepared, changed: list[Change], step: int, ranks: int = 1
) -> None:  # fmt: skip
    """Prints the changes, appends them to resumes.jsonl, and updates the identity files of the run."""
    for change in changed:
        print(f"note: changed since the run stopped: {change}", file=sys.stderr)
    listed = [{"key": c.key, "class": c.kind, "before": c.before, "now": c.now} for c in changed]
    when = datetime.now(UTC).isoformat(timespec="seconds")
    with MetricsLog(run.resumes) as file:
        file.write({"at": when, "step": step, "changes": listed, "versions": identity(prepared)["versions"]})
    if changed:
        _write(run, prepared, ranks)


def identity(prepared: Prepared, ranks: int = 1) -> dict:
    """Returns the identity of a run: digests of recipe, plans and training data, plugins and versions; by stage the
    terms that do not add up over micro-batches; and the number of ranks."""
    recipe = prepared.recipe
    teachers = {name: prepared.teachers[name].identity() for name in prepared.teachers}
    learned = {name for stage in recipe.stages.values() for name in stage.data}
    return {
        "format": 1,
        "recipe": digest(recipe),
        "plans": {stage: plan.digest for stage, plan in prepared.plans.items()},
        "not_additive": {
            s: list(plan.not_additive) for s, plan in prepared.plans.items() if plan.not_additive
        },
        "ranks": ranks,
        "data": {name: prepared.sources[name].identity() for name in sorted(learned)},
        "plugins": {name: prepared.instances.origin(name) for name in prepared.instances.components},
        "observers": list(prepared.instances.registry.observers),
        "root": str(Path(recipe.root).resolve()),
        **({"teachers": teachers} if teachers else {}),
        "versions": {"python": platform.python_version(), "torch": torch.__version__},
    }


def _write(run: RunFolder, prepared: Prepared, ranks: int) -> None:
    write_text_atomic(run.resolved, dump(prepared.recipe))
    write_text_atomic(run.plan, plan_text(prepared))
    before = read_json(run.run_json) if run.is_run else {}  # with its sessions
    write_json_atomic(run.run_json, {**before, **identity(prepared, ranks)})


def _refused(run: RunFolder, change: Change, terms: str, root: str) -> Problem:
    """Returns the problem of a change. `terms`: those that do not add up over micro-batches. `root`: where the paths of
    the recipe start."""
    where, accept = f"{run.path}: {change.key}", ""
    if change.key == "ranks":
        got, before = (f"{n} rank{'s' * (n != '1')}" for n in (change.now, change.before))
        return OTHER_RANKS.at(where, got=got, before=before, terms=terms)
    if is_cut(change.key):
        return OTHER_CUT.at(where, got=change.now, before=change.before, key=change.key, terms=terms)
    if change.kind == "data":
        accept = f" If the change is intended: `{ACCEPT}`; resumes.jsonl keeps what the data was."
    words = {"recipe": quote(str(run.resolved)), "root": quote(root), "run": quote(str(run.path))}
    return CHANGED.at(where, got=change.now, before=change.before, accept=accept, **words)


def _changed(key: str, before: object, now: object) -> Iterator[tuple[str, str, str]]:
    """Yields (dotted key, before, now) for every value that differs."""
    if isinstance(before, Mapping) and isinstance(now, Mapping):
        for name in sorted(before.keys() | now.keys()):
            yield from _changed(f"{key}.{name}", before.get(name), now.get(name))
    elif before != now:
        was, is_ = ("nothing" if value is None else str(value) for value in (before, now))
        yield key, was, is_
