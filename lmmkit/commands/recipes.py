"""lmmkit recipes list | copy: the recipes and grids that come with the package."""

from __future__ import annotations

import re
import shlex
from contextlib import suppress
from itertools import takewhile
from pathlib import Path
from typing import Annotated

import typer

from lmmkit.commands.support.common import Json, out, print_json, refused_file, reporting, wrapped
from lmmkit.errors import UserError, did_you_mean
from lmmkit.errors.commands import EXISTS, UNKNOWN_RECIPE

app = typer.Typer(no_args_is_help=True, help="Recipes and grids that come with lmmkit.")


@app.command("list")
@reporting
def list_(as_json: Json = False) -> None:
    """List the recipes and the grids of `lmmkit ablate` (ablations/NAME), each with its first sentence."""
    from lmmkit.recipe.shipped import shipped, shipped_grids

    found = {name: _headline(path) for name, path in (shipped() | shipped_grids()).items()}
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
    """Copy a recipe or a grid to a new file, to edit it."""
    from lmmkit.recipe.shipped import GRIDS, shipped, shipped_grids

    grids = shipped_grids()
    known = shipped() | grids
    plain = name.removesuffix(".yaml")
    source = known.get(plain, known.get(f"{GRIDS}{plain}"))
    if source is None:
        raise UserError(UNKNOWN_RECIPE.at("NAME", got=f"`{name}`", suggestion=did_you_mean(name, known)))
    target = to or Path(source.name)
    if target.exists():
        raise UserError(EXISTS.at(str(target), got="a file or a folder"))
    try:
        target.write_bytes(source.read_bytes())
    except OSError as error:
        with suppress(OSError):  # a part of it, where the disk is full
            target.unlink()
        raise refused_file(error, target) from error
    if source in grids.values():
        return out.print(f"{target}: run it with `{shlex.join(['lmmkit', 'ablate', str(target)])}`")
    out.print(f"{target}: train it with `{shlex.join(['lmmkit', 'train', str(target)])}`")


def _headline(path: Path) -> str:
    """Returns the first sentence of what a file says of itself; further lines are indented."""
    first, *rest = path.read_text(encoding="utf-8").splitlines()
    lines = [
        first.removeprefix("#").strip().removeprefix("What:"),
        *takewhile(lambda x: x.startswith("#  "), rest),
    ]
    about = " ".join(line.removeprefix("#").strip() for line in lines)
    return re.split(r"(?<=\.)\s", about)[0]
