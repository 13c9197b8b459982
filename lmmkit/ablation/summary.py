"""The outcome of a grid as plain data: `ablation.json`, which `lmmkit report` reads (docs/ablations.md)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from lmmkit.ablation.arms import Arm, is_loss
from lmmkit.ablation.grid import BASE, GridFile
from lmmkit.ablation.intervals import Estimate, over_questions, over_seeds, with_holm
from lmmkit.ablation.results import FinishedRun
from lmmkit.recipe import diff

FORMAT = 1
_ByPair = dict[tuple[str, int], float]


def summarise_grid(file: GridFile, arms: Sequence[Arm], runs: Sequence[FinishedRun]) -> dict[str, Any]:
    """Returns the outcome of the finished runs. Arms come in the order of the grid, for each thing held equal."""
    grid = file.grid
    groups = _groups(runs)
    entries = arm_entries(file, arms, runs)
    for name, measure in grid.measures.items():
        compared = [
            (entry, found)
            for entry in entries
            if entry["variant"] != BASE
            and (found := _difference(groups, entry, measure, grid.interval)) is not None
        ]
        corrected = with_holm([estimate for _, (estimate, _, _) in compared])
        for (entry, (_, over, pairs)), estimate in zip(compared, corrected, strict=True):
            entry["measures"][name]["difference"] = {**asdict(estimate), "over": over, "pairs": pairs}
    _name_equal_results(entries)
    return {
        "format": FORMAT,
        "grid": file.name,
        "file": file.argument,
        "base": grid.base,
        "variants": [arm.name for arm in arms[1:]],
        "seeds": list(grid.seeds),
        "roots": [str(Path(root).resolve()) for root in grid.root],
        "branch": None if grid.branch is None else asdict(grid.branch),
        "equal": list(grid.equal),
        "interval": grid.interval,
        "measures": dict(grid.measures),
        "losses": [
            name for name, path in grid.measures.items() if any(is_loss(arm.recipe, path) for arm in arms)
        ],
        "arms": entries,
    }


def expected_runs(summary: Mapping[str, Any]) -> int:
    """Returns how many runs an arm has when the grid is complete."""
    branches = 1 if summary["branch"] is None else summary["branch"]["times"]
    return len(summary["seeds"]) * len(summary["roots"]) * branches


def is_share(summary: Mapping[str, Any], measure: str) -> bool:
    """Returns whether a measure is shown in percent: all its values are within -1 and 1, and it is no loss."""
    values = [each["value"] for arm in summary["arms"] for each in arm["measures"][measure]["values"]]
    return measure not in summary["losses"] and all(abs(value) <= 1 for value in values)


def arm_entries(file: GridFile, arms: Sequence[Arm], runs: Sequence[FinishedRun]) -> list[dict[str, Any]]:
    """Returns the part `arms` of the outcome, without differences: they need the runs of all arms."""
    groups = _groups(runs)
    return [
        _entry(arm, arms[0], equal, groups.get((equal, arm.name), []), file.grid.measures)
        for equal in file.grid.equal
        for arm in arms
    ]


def _groups(runs: Sequence[FinishedRun]) -> dict[tuple[str, str], list[FinishedRun]]:
    groups: dict[tuple[str, str], list[FinishedRun]] = {}
    for run in runs:
        groups.setdefault((run.run.equal, run.run.arm), []).append(run)
    return groups


def _entry(
    arm: Arm, base: Arm, equal: str, runs: Sequence[FinishedRun], measures: Mapping[str, str]
) -> dict[str, Any]:
    return {
        "variant": arm.name,
        "equal": equal,
        "changes": [
            {"key": each.key, "class": each.section_class, "base": each.a, "here": each.b}
            for each in diff(base.recipe, arm.recipe)
        ],
        "steps": {stage.stage: stage.steps for stage in runs[0].run.stages} if runs else {},
        "runs": [_run(each) for each in runs],
        "cost": _mean_cost(runs),
        "measures": {name: _measured(runs, measure) for name, measure in measures.items()},
        "same_results_as": [],
    }


def _run(each: FinishedRun) -> dict[str, Any]:
    run = each.run
    return {
        "key": run.key, "folder": str(each.folder), "seed": run.seed, "root": run.root, "branch": run.branch,
        "stages": {stage.stage: stage.key for stage in run.stages}, "cost": _cost(each),
    }  # fmt: skip


def _cost(each: FinishedRun) -> dict[str, float | None]:
    """Returns what a run took: the sum of its stages, as if it shared none."""
    return {
        "cpu_seconds": _sum([cost.cpu_seconds for cost in each.costs]),
        "wall_seconds": _sum([cost.wall_seconds for cost in each.costs]),
        "tokens": _sum([cost.tokens for cost in each.costs]),
        "steps": sum(cost.steps for cost in each.costs),
    }


def _sum(values: Sequence[float | None]) -> float | None:
    """Returns the sum of values; None if one of them is not known."""
    known = [value for value in values if value is not None]
    return sum(known) if len(known) == len(values) else None


def _mean_cost(runs: Sequence[FinishedRun]) -> dict[str, float | None]:
    """Returns the mean cost of the runs whose cost is known."""
    found: dict[str, float | None] = {}
    for key in ("cpu_seconds", "wall_seconds", "tokens", "steps"):
        known = [value for run in runs if (value := _cost(run)[key]) is not None]
        found[key] = sum(known) / len(known) if known else None
    return found


def _measured(runs: Sequence[FinishedRun], measure: str) -> dict[str, Any]:
    values = [
        {"seed": run.run.seed, "root": run.run.root, "branch": run.run.branch, "value": value}
        for run in runs
        if (value := run.value(measure)) is not None
    ]
    pairs = list(_by_pair(runs, measure).values())
    return {"values": values, **(asdict(over_seeds(pairs)) if pairs else {}), "difference": None}


def _by_pair(runs: Sequence[FinishedRun], measure: str) -> _ByPair:
    """Returns the value of a measure by root and seed: the mean of its branches, which share their first stages and so
    count once."""
    found: dict[tuple[str, int], list[float]] = {}
    for run in runs:
        if (value := run.value(measure)) is not None:
            found.setdefault(run.pair, []).append(value)
    return {pair: sum(values) / len(values) for pair, values in found.items()}


def _difference(
    groups: Mapping[tuple[str, str], Sequence[FinishedRun]],
    entry: Mapping[str, Any],
    measure: str,
    interval: str,
) -> tuple[Estimate, str, list[dict[str, Any]]] | None:
    """Returns the difference of a variant to the base, over what its interval is, and the difference of each pair; None
    if they have no pair."""
    own, base = (groups.get((entry["equal"], name), []) for name in (entry["variant"], BASE))
    values, of_base = _by_pair(own, measure), _by_pair(base, measure)
    pairs = [
        {"root": root, "seed": seed, "value": values[root, seed] - of_base[root, seed]}
        for root, seed in values
        if (root, seed) in of_base
    ]
    if not pairs:
        return None
    if interval == "questions" and (found := _of_questions(own, base, measure)) is not None:
        return found, "questions", pairs
    return over_seeds([each["value"] for each in pairs]), "seeds", pairs


def _of_questions(own: Sequence[FinishedRun], base: Sequence[FinishedRun], measure: str) -> Estimate | None:
    """Returns the difference over questions of the runs with a partner; None for a figure that is no mean of scores."""
    common = {run.pair for run in own} & {run.pair for run in base}
    sides, clusters = [], {}
    for runs in (own, base):
        scores: dict[str, list[float]] = {}
        for run in (run for run in runs if run.pair in common):
            answers = run.scores(measure)
            if answers is None:
                return None
            for id, answer in answers.items():
                scores.setdefault(f"{run.run.root} {id}", []).append(answer.score or 0.0)
                clusters[f"{run.run.root} {id}"] = f"{run.run.root} {answer.cluster or id}"
        sides.append(scores)
    first, second = sides
    both = [id for id in first if id in second]
    if not both:
        return None
    return over_questions({id: first[id] for id in both}, {id: second[id] for id in both}, clusters)


def _name_equal_results(entries: Sequence[dict[str, Any]]) -> None:
    """Names for each arm the earlier ones whose figures are the same in all runs."""
    for i, entry in enumerate(entries):
        own = _all_values(entry)
        entry["same_results_as"] = [
            other["variant"]
            for other in entries[:i]
            if own and other["equal"] == entry["equal"] and _all_values(other) == own
        ]


def _all_values(entry: Mapping[str, Any]) -> list[Any]:
    return [measured["values"] for measured in entry["measures"].values() if measured["values"]]
