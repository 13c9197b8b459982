"""The outcome of a grid as tables of at most 80 columns, made from the data of `summary.py`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from rich.table import Table

from lmmkit.ablation.grid import BASE
from lmmkit.ablation.summary import expected_runs, is_share

_Entry = Mapping[str, Any]


def grid_tables(summary: Mapping[str, Any]) -> Iterator[Table]:
    """Yields a table for each thing held equal and each measure; the first measure has the costs beside it."""
    for equal in summary["equal"]:
        entries = [entry for entry in summary["arms"] if entry["equal"] == equal]
        for i, (name, path) in enumerate(summary["measures"].items()):
            yield _table(summary, entries, equal, name, path, costs=i == 0)


def remarks(summary: Mapping[str, Any]) -> Iterator[str]:
    """Yields lines about how to read the tables, and what is not in them."""
    yield (
        "difference: to the base, paired by root and seed. over seeds: 95 % t interval over these pairs. over "
        "questions: 95 % cluster bootstrap, paired by id, which describes these runs only. p: Holm's, over all "
        "differences of a measure."
    )
    if summary["branch"] is not None:
        yield (
            f"branches: {summary['branch']['times']} runs share the stages until `{summary['branch']['after']}`; their "
            "mean counts as one value."
        )
    roots, expected = summary["roots"], expected_runs(summary)
    if len(roots) == 1:
        yield f"one data root ({roots[0]}): the intervals do not include how results vary with the data."
    base = {entry["equal"]: entry for entry in summary["arms"] if entry["variant"] == BASE}
    for entry in summary["arms"]:
        label = _label(entry, summary)
        if entry["same_results_as"]:
            yield f"{label}: the same figures as {', '.join(entry['same_results_as'])} in all runs."
        steps, of_base = (sum(each["steps"].values()) for each in (entry, base[entry["equal"]]))
        if entry["equal"] == "steps" and steps != of_base:
            yield f"{label}: {steps:,} steps by its recipe, the base has {of_base:,}."
        if len(entry["runs"]) != expected:
            yield f"{label}: {len(entry['runs'])} of {expected} runs are finished."
        for name, path in summary["measures"].items():
            found = entry["measures"][name]["values"]
            if 0 < len(found) < len(entry["runs"]):
                yield f"{label}: {len(found)} of {len(entry['runs'])} runs have {name} ({path})."
        if len(roots) > 1:
            yield from _by_root(entry, label, summary)
    yield from _of_measures(summary)


def _of_measures(summary: Mapping[str, Any]) -> Iterator[str]:
    """Yields the measures that no run has, and those whose interval is not the one that was asked for."""
    for name, path in summary["measures"].items():
        measured = [entry["measures"][name] for entry in summary["arms"]]
        if not any(each["values"] for each in measured) and any(entry["runs"] for entry in summary["arms"]):
            yield f"{name}: no run has the figure {path}."
        over = {each["difference"]["over"] for each in measured if each["difference"] is not None}
        if summary["interval"] == "questions" and "seeds" in over:
            yield f"{name}: there are no kept answers of this figure, so its intervals are over seeds."


def _by_root(entry: _Entry, label: str, summary: Mapping[str, Any]) -> Iterator[str]:
    """Yields the difference on each root, of the first measure."""
    first = next(iter(summary["measures"]))
    difference = entry["measures"][first]["difference"]
    if difference is None:
        return
    (scale, digits, _), found = _scale(summary, first), []
    for root in summary["roots"]:
        values = [pair["value"] for pair in difference["pairs"] if pair["root"] == root]
        if values:
            found.append(f"{root} {scale * sum(values) / len(values):+.{digits}f}")
    yield f"{label}: {first} by root: {'; '.join(found)}"


def _label(entry: _Entry, summary: Mapping[str, Any]) -> str:
    several = len(summary["equal"]) > 1
    return f"{entry['variant']} (equal {entry['equal']})" if several else entry["variant"]


def _table(
    summary: Mapping[str, Any], entries: Sequence[_Entry], equal: str, name: str, path: str, *, costs: bool
) -> Table:
    scale, digits, unit = _scale(summary, name)
    n = len(summary["seeds"])
    table = Table(
        title=f"{summary['grid']}, equal {equal}: {name} ({path}{unit}), {n} seed{'s' * (n != 1)}",
        title_justify="left",
    )
    table.add_column("", no_wrap=True)
    for heading in ("mean", "difference (95 %)", "over", "p"):
        table.add_column(heading, justify="right")
    for heading in ("CPU s", "tokens", "steps") if costs else ():
        table.add_column(heading, justify="right")
    for entry in entries:
        measured, cost = entry["measures"][name], entry["cost"]
        mean = f"{scale * measured['value']:.{digits}f}" if "value" in measured else "-"
        row = [entry["variant"], mean, *_difference(entry, measured["difference"], scale, digits)]
        if costs:
            row += [
                _number(cost["cpu_seconds"], 0),
                _short(cost["tokens"]),
                _number(cost["steps"], 0),
            ]
        table.add_row(*row)
    return table


def _scale(summary: Mapping[str, Any], name: str) -> tuple[float, int, str]:
    """Returns what the figures of a measure are multiplied by, their digits, and their unit."""
    return (100.0, 1, ", percent") if is_share(summary, name) else (1.0, 4, "")


def _difference(
    entry: _Entry, found: Mapping[str, Any] | None, scale: float, digits: int
) -> tuple[str, str, str]:
    """Returns the cells of a difference: its value and interval, over how many what, and p."""
    if found is None:
        return ("" if entry["variant"] == BASE else "-", "", "")
    text = f"{scale * found['value']:+.{digits}f}"
    if found["low"] is not None:
        text += f" ({scale * found['low']:+.{digits}f} to {scale * found['high']:+.{digits}f})"
    over = found["over"] if found["n"] != 1 else found["over"].removesuffix("s")
    return text, f"{found['n']:,} {over}", _probability(found["p_holm"])


def _probability(p: float | None) -> str:
    if p is None:
        return "-"
    return "<.001" if p < 0.001 else f"{p:.3f}"


def _number(value: float | None, digits: int) -> str:
    return "?" if value is None else f"{value:,.{digits}f}"


def _short(value: float | None) -> str:
    """Returns a count in three digits: "950", "12.3k", "4.56M"."""
    if value is None:
        return "?"
    for size, letter in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if value >= size:
            return f"{value / size:.3g}{letter}"
    return f"{value:.0f}"
