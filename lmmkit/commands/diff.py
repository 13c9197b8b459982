"""lmmkit diff A B"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer
from rich.table import Table

from lmmkit.commands.support.common import Json, out, print_json, print_table, reporting

Side = Annotated[Path, typer.Argument(help="A recipe, or a run folder.")]


@reporting
def diff(a: Side, b: Side, as_json: Json = False) -> None:
    """Show the keys in which two recipes or runs differ, each with its class."""
    from lmmkit.recipe import CUT, Difference, read_recipe
    from lmmkit.recipe import diff as compare
    from lmmkit.runs.run_folder import RunFolder

    left, right = (read_recipe(RunFolder(p).resolved if p.is_dir() else p) for p in (a, b))
    cuts = [RunFolder(p).cut() for p in (a, b) if p.is_dir() and RunFolder(p).is_run]
    terms = sorted({name for names, _ in cuts for name in names})
    found = compare(left, right, cut=bool(terms))
    ranks = [n for _, n in cuts if n is not None]
    if len(set(ranks)) == 2:
        kind = "mathematics" if terms else "speed"
        found.append(Difference(key="ranks", section_class=kind, a=ranks[0], b=ranks[1]))
    if as_json:
        return print_json([{"key": d.key, "class": d.section_class, "a": d.a, "b": d.b} for d in found])
    if not found:
        return out.print("the same.")
    table = Table(title=f"A: {a}\nB: {b}", title_justify="left")
    for column in ("class", "key", "A", "B"):
        table.add_column(column)
    for d in found:
        table.add_row(d.section_class, d.key, _shown(d.a), _shown(d.b))
    print_table(table)
    if terms:
        names, keys = ", ".join(terms), ", ".join(CUT)
        out.print(f"Of {names} the value is the mean over micro-batches: {keys} and ranks are mathematics.")


def _shown(value: Any) -> str:
    """Returns a value as a recipe has it."""
    from lmmkit.recipe import flow_text

    return flow_text(value) if isinstance(value, dict | list) else str(value)
