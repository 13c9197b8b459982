"""Fits tables to the width of the terminal: no cell is cut off, and no word or number is broken."""

from __future__ import annotations

import textwrap

from rich.cells import cell_len
from rich.table import Column, Table


def fitted(table: Table, width: int) -> Table:
    """Returns the table so that its lines fit into `width` columns.

    If it is too wide, it gets no lines between its columns, then texts of several lines. Where one word of each
    column has no room, every row becomes a list: "heading  cell".
    """
    room, table.width = width if table.width is None else min(width, table.width), None
    natural = [max((_longest(text.splitlines()) for text in _texts(c)), default=0) for c in table.columns]
    least = [max((_longest(text.split()) for text in _texts(c)), default=0) for c in table.columns]
    if table.box is not None and sum(natural) + _frame(table) > room:
        table.box, table.padding, table.pad_edge = None, (0, 1, 0, 0), False
    room -= _frame(table)
    if sum(least) > room and len(table.columns) > 2:
        return fitted(_as_lists(table), width)
    table.title, table.caption = (_wrapped(text, width) for text in (table.title, table.caption))
    for column, most in zip(table.columns, _widths(natural, least, room), strict=True):
        column.overflow, column.no_wrap, column.width = "fold", False, most
    return table


def _widths(natural: list[int], least: list[int], room: int) -> list[int]:
    """Returns the widths of columns: at least their longest word, at most their longest line. A column gets more
    as long as its text takes the most lines."""
    found = list(least)
    while sum(found) > room:  # words that are longer than a line are broken
        found[found.index(max(found))] -= 1
    for _ in range(min(sum(natural), room) - sum(found)):
        ratios = [most / max(now, 1) if now < most else 0.0 for most, now in zip(natural, found, strict=True)]
        found[ratios.index(max(ratios))] += 1
    return found


def _as_lists(table: Table) -> Table:
    """Returns a table of two columns, heading and cell, with an empty line between rows."""
    out = Table(box=None, show_header=False, padding=(0, 2, 0, 0), pad_edge=False)
    out.title, out.title_justify = table.title, table.title_justify
    out.caption, out.caption_justify = table.caption, table.caption_justify
    out.add_column()
    out.add_column()
    headings = [_plain(column.header).replace("-\n", "").replace("\n", " ") for column in table.columns]
    for number, row in enumerate(zip(*(column.cells for column in table.columns), strict=True)):
        if number:
            out.add_row("", "")
        for heading, cell in zip(headings, row, strict=True):
            out.add_row(heading, cell)
    return out


def _frame(table: Table) -> int:
    """Returns the columns that spaces and lines between the cells take."""
    n, (_, right, _, left) = len(table.columns), table.padding
    edges = left + right if table.pad_edge else 0
    return (n - 1) * (left + right) + edges + (n + 1 if table.box is not None else 0)


def _texts(column: Column) -> list[str]:
    return [_plain(column.header), *map(_plain, column.cells)]


def _plain(cell: object) -> str:
    return str(getattr(cell, "plain", cell))


def _longest(parts: list[str]) -> int:
    return max(map(cell_len, parts), default=0)


def _wrapped(text: object, width: int) -> str | None:
    """Returns the title or caption of a table in lines that fit, without a change if its own lines do."""
    if text is None or all(len(line) <= width for line in str(text).splitlines()):
        return None if text is None else str(text)
    return textwrap.fill(" ".join(str(text).split()), width)
