"""lmmkit diff A B"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table

from lmmkit.commands.support.common import Json, out, print_json, print_table, reporting

WIDE = 110  # columns; below, a table would cut keys and values into pieces

Side = Annotated[Path, typer.Argument(help="A recipe, or a run folder.")]


@reporting
def diff(a: Side, b: Side, as_json: Json = False) -> None:
    """Show the keys in which two recipes or runs differ, each with its class."""
    from lmmkit.recipe import diff as compare
    from lmmkit.recipe import read_recipe
    from lmmkit.recipe.shipped import find_recipe
    from lmmkit.runs.run_folder import RunFolder

    left, right = (read_recipe(RunFolder(p).resolved if p.is_dir() else find_recipe(p)) for p in (a, b))
    found = compare(left, right)
    if as_json:
        return print_json([{"key": d.key, "class": d.section_class, "a": d.a, "b": d.b} for d in found])
    if not found:
        return out.print("the same.")
    if out.width < WIDE:
        for d in found:
            out.print(f"{d.key}  ({d.section_class})\n  {a}: {d.a}\n  {b}: {d.b}")
        return
    table = Table()
    for column in ("class", "key", str(a), str(b)):
        table.add_column(column, overflow="fold")
    for d in found:
        table.add_row(d.section_class, d.key, str(d.a), str(d.b))
    print_table(table)
