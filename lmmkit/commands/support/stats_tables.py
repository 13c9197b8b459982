"""Prints what `lmmkit data stats` has measured, as tables."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from rich.table import Table

from lmmkit.progress import plural

ALL = "all"  # the name of the line of all sources, unless a source has it


def stats_tables(found: Mapping[str, Any]) -> Iterator[Table]:
    """Yields the tables: records, rows, images, and the reasons of bad records."""
    sources = found["sources"]
    lines = list(sources.items())
    if len(lines) > 1:
        lines.append((ALL if ALL not in sources else "(all)", found["all"]))
    yield _records(lines)
    yield _rows(lines, found)
    if any(each["height"]["count"] for _, each in lines):
        yield _images(lines)
    if found["all"]["reasons"]:
        yield _reasons(sources)


def stats_notes(found: Mapping[str, Any]) -> Iterator[str]:
    """Yields what else is worth a line: which records were measured, and what is read in another way."""
    if parts := [name for name, each in found["sources"].items() if _is_part(each)]:
        yield (
            f"turns, images and rows are those of {plural(found['sample'], 'record')}, chosen at random "
            f"(seed {found['seed']}), in {', '.join(parts)}; images of the other records were not looked at"
        )
    for name, each in found["sources"].items():
        if n := each["nothing_supervised"]:
            yield f"{name}: {plural(n, 'record')} with nothing supervised, which training leaves out"
        for what, n in each["notes"].items():
            yield f"{name}: {plural(n, 'record')}: {what}"


def _records(lines: list[tuple[str, Mapping[str, Any]]]) -> Table:
    table = _table("records")
    _columns(table, "source", "records", "bad", "turns", "images", "without image")
    table.add_column("template")
    table.add_column("image_fit")
    for name, each in lines:
        counts = each["records"], each["bad_records"], each["turns"]["total"], each["images"]["total"]
        shape = each.get("template", ""), each.get("image_fit", "")
        table.add_row(name, *map(_number, (*counts, each["without_images"])), *shape)
    return table


def _rows(lines: list[tuple[str, Mapping[str, Any]]], found: Mapping[str, Any]) -> Table:
    table = _table("rows of a record, without tokens and views of plugins")
    _columns(table, "source", "least", "median", "95 %", "most", "supervised", "too long", "nothing left")
    stages: dict[str, list[str]] = {}
    for name, word in found["too_long"].items():
        stages.setdefault(word, []).append(name)
    policies = [f"; `too_long: {word}` in {', '.join(names)}" for word, names in stages.items()]
    table.caption = f"too long: more rows than the context of {found['context']:,}{''.join(policies)}"
    for name, each in lines:
        rows, long, share = each["rows"], each["too_long"], each["supervised_share"]
        figures = [_number(rows[key]) for key in ("min", "median", "p95", "max")]
        part = "" if share is None else f"{100 * share:.1f} %"
        table.add_row(name, *figures, part, _number(long["records"]), _number(long["nothing_left"]))
    return table


def _images(lines: list[tuple[str, Mapping[str, Any]]]) -> Table:
    table = _table("images: median (least to most)")
    _columns(table, "source", "images", "width", "height", "rows of an image")
    for name, each in lines:
        if each["height"]["count"]:
            ranges = [_range(each[key]) for key in ("width", "height", "image_rows")]
            table.add_row(name, _number(each["height"]["count"]), *ranges)
    return table


def _reasons(sources: Mapping[str, Any]) -> Table:
    table = _table("bad records")
    table.caption = "`lmmkit data check RECIPE` lists them; `lmmkit explain CODE` prints cause and fix"
    for column in ("source", "reason"):
        table.add_column(column)
    table.add_column("records", justify="right")
    table.add_column("first")
    for name, each in sources.items():
        for code, reason in each["reasons"].items():
            table.add_row(name, code, _number(reason["records"]), reason["first"])
    return table


def _is_part(each: Mapping[str, Any]) -> bool:
    """Returns whether records of a source were not read: those that were are measured, or bad."""
    return each["measured"] < each["records"] - each["bad_records"]


def _table(title: str) -> Table:
    return Table(
        title=title, title_justify="left", caption_justify="left", box=None, padding=(0, 2, 0, 0), pad_edge=False
    )  # fmt: skip


def _columns(table: Table, first: str, *figures: str) -> None:
    table.add_column(first)
    for name in figures:
        table.add_column(name, justify="right")


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:,.0f}"


def _range(found: Mapping[str, float]) -> str:
    if found["min"] == found["max"]:
        return _number(found["max"])
    return f"{found['median']:,.0f} ({found['min']:,.0f} to {found['max']:,.0f})"
