"""lmmkit recipes list | copy: the recipes that come with the package."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Annotated

import typer

from lmmkit.commands.support.common import Json, out, print_json, reporting
from lmmkit.errors import UserError, did_you_mean
from lmmkit.errors.commands import EXISTS, RECIPES_UNKNOWN

app = typer.Typer(no_args_is_help=True, help="Recipes that come with lmmkit.")


def folder() -> Path:
    """Where they lie: in the installed package, or beside it in a checkout."""
    package = Path(__file__).resolve().parent.parent
    shipped = package / "shipped"
    return shipped if shipped.is_dir() else package.parent / "recipes"


def shipped() -> dict[str, Path]:
    """Recipe files by name without ending ("ablations/start")."""
    return {str(p.relative_to(folder()).with_suffix("")): p for p in sorted(folder().rglob("*.yaml"))}


def find(path: Path) -> Path:
    """A recipe file as given, or the shipped recipe of that name; a folder of that name (the quickstart
    leaves one) is no recipe."""
    known = shipped()
    name = str(path).removeprefix("recipes/").removesuffix(".yaml")
    return known[name] if not path.is_file() and name in known else path


@app.command("list")
@reporting
def list_(as_json: Json = False) -> None:
    """Names and what they are."""
    found = {name: _headline(path) for name, path in shipped().items()}
    if as_json:
        return print_json(found)
    width = max(map(len, found))
    for name, line in found.items():
        out.print(f"{name:{width}}  {line}")


@app.command()
@reporting
def copy(
    name: Annotated[str, typer.Argument(help="A name of `lmmkit recipes list`.")],
    to: Annotated[Path | None, typer.Argument(help="The new file. \\[default: NAME.yaml here]")] = None,
) -> None:
    """Copies a recipe, to be changed."""
    known = shipped()
    if name.removesuffix(".yaml") not in known:
        raise UserError(RECIPES_UNKNOWN.at("NAME", got=f"`{name}`", suggestion=did_you_mean(name, known)))
    source = known[name.removesuffix(".yaml")]
    target = to or Path(source.name)
    if target.exists():
        raise UserError(EXISTS.at(str(target), got="a file or a folder"))
    shutil.copyfile(source, target)
    out.print(f"{target}: train it with `lmmkit train {target}`")


def _headline(path: Path) -> str:
    first = path.read_text(encoding="utf-8").splitlines()[0]
    return first.removeprefix("#").strip().removeprefix("What:").strip()
