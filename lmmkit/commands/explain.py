"""lmmkit explain [CODE]"""

from __future__ import annotations

from dataclasses import asdict
from string import Formatter
from typing import Annotated

import typer
from rich.table import Table
from rich.text import Text

from lmmkit.commands.support.common import Json, out, print_json, print_table, reporting, safe
from lmmkit.errors import Code, UserError, all_codes, did_you_mean
from lmmkit.errors.commands import UNKNOWN_CODE

WIDTH = 80


@reporting
def explain(
    code: Annotated[
        str | None,
        typer.Argument(help="The code at the end of a message, such as plan/no-view. \\[default: list all]"),
    ] = None,
    as_json: Json = False,
) -> None:
    """Print the cause and the fix of an error code; without one, list all codes."""
    known = all_codes()
    if code is None:
        return print_json([asdict(each) for each in known.values()]) if as_json else print_table(_list(known))
    if code not in known:
        related = [name for name in known if name.startswith(f"{code.partition('/')[0]}/")]
        suggestion = did_you_mean(code, related or known)
        raise UserError(UNKNOWN_CODE.at("CODE", got=f"`{code}`", suggestion=suggestion))
    found = known[code]
    if as_json:
        return print_json(asdict(found))
    out.print(Text(code, "bold"))
    table = Table(box=None, show_header=False, padding=(0, 0, 0, 2), width=min(WIDTH, out.width))
    table.add_column()
    table.add_column()
    for label, text in (("cause", found.cause), ("expected", found.expected), ("hint", found.hint)):
        table.add_row(label, safe(_readable(text)))
    print_table(table)


def _list(known: dict[str, Code]) -> Table:
    table = Table(width=min(WIDTH, out.width))
    table.add_column("code", no_wrap=True)
    table.add_column("cause")
    for code in known.values():
        table.add_row(code.code, safe(code.cause))
    return table


def _readable(template: str) -> str:
    """Returns a template as text: fields become `<name>`; for a field alone, a reference to the message."""
    parts = [(text, field) for text, field, _, _ in Formatter().parse(template)]
    if all(field and not text for text, field in parts):
        return "see the message: it depends on the case"
    return "".join(text + (f"<{field.replace('_', ' ')}>" if field else "") for text, field in parts)
