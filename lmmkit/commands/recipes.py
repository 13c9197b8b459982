"""lmmkit recipes list | copy: the recipes that come with the package."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path
from typing import Annotated

import typer

from lmmkit.commands.support.common import Json, out, print_json, refused_file, reporting, wrapped
from lmmkit.errors import UserError, did_you_mean
from lmmkit.errors.commands import EXISTS, UNKNOWN_RECIPE

app = typer.Typer(no_args_is_help=True, help="Recipes that come with lmmkit.")


@app.command("list")
@reporting
def list_(as_json: Json = False) -> None:
    """List the recipes, each with its first line."""
    from lmmkit.recipe.shipped import shipped

    found = {name: _headline(path) for name, path in shipped().items()}
    if as_json:
        return print_json(found)
    width = max(map(len, found))
    for name, line in found.items():
        out.print(wrapped(f"{name:{width}}  {line}", out, width + 2))


@app.command()
@reporting
def copy(
    name: Annotated[str, typer.Argument(help="A name of `lmmkit recipes list`.")],
    to: Annotated[Path | None, typer.Argument(help="The new file. \\[default: NAME.yaml here]")] = None,
) -> None:
    """Copy a recipe to a new file, to edit it."""
    from lmmkit.recipe.shipped import shipped

    known = shipped()
    if name.removesuffix(".yaml") not in known:
        raise UserError(UNKNOWN_RECIPE.at("NAME", got=f"`{name}`", suggestion=did_you_mean(name, known)))
    source = known[name.removesuffix(".yaml")]
    target = to or Path(source.name)
    if target.exists():
        raise UserError(EXISTS.at(str(target), got="a file or a folder"))
    try:
        target.write_bytes(source.read_bytes())
    except OSError as error:
        with suppress(OSError):  # a part of it, where the disk is full
            target.unlink()
        raise refused_file(error, target) from error
    out.print(f"{target}: train it with `lmmkit train {target}`")


def _headline(path: Path) -> str:
    first = path.read_text(encoding="utf-8").splitlines()[0]
    return first.removeprefix("#").strip().removeprefix("What:").strip()
