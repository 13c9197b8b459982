"""Helpers for all commands: options, reading a recipe, printing problems, exit codes."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import wraps
from pathlib import Path
from typing import Annotated, Literal

import typer
from rich.console import Console

from lmmkit.errors import LmmkitError

out = Console(soft_wrap=True, highlight=False)
err = Console(stderr=True, soft_wrap=True, highlight=False)

RecipePath = Annotated[
    Path, typer.Argument(metavar="RECIPE", help="A recipe file; `lmmkit recipes list` names some.")
]
Root = Annotated[
    Path | None, typer.Option("--root", help="Where the recipe's relative paths start. \\[default: here]")
]
Set = Annotated[
    list[str] | None, typer.Option("--set", metavar="K=V", help="Change one key: a.b=c. Repeatable.")
]
Trust = Annotated[bool, typer.Option("--trust-files", help="Run plugins from local files the recipe names.")]
Dtype = Annotated[
    Literal["float32", "bfloat16"],
    typer.Option("--dtype", help="The data type of the weights and of the computation."),
]
Json = Annotated[bool, typer.Option("--json", help="Print JSON, for scripts.")]


def reporting(command: Callable) -> Callable:
    """Returns the command with error handling: an `LmmkitError` is printed without a traceback and sets the
    exit code."""

    @wraps(command)
    def run(*args, **kwargs):
        try:
            return command(*args, **kwargs)
        except LmmkitError as error:
            show(error)
            raise typer.Exit(error.exit_code) from None

    return run


def show(error: LmmkitError) -> None:
    """Prints every problem and how many there are; nothing if another rank has already printed them."""
    for problem in error.problems:
        err.print(f"[bold red]error[/] [bold]{safe(problem.where)}[/]")
        for label, text in (("got", problem.got), ("expected", problem.expected), ("hint", problem.hint)):
            end = f"  [dim]\\[{problem.code}][/]" if label == "hint" else ""
            err.print(f"  {label:8}  {safe(text)}".replace("\n", "\n" + 12 * " ") + end)
    n = len(error.problems)
    if n:
        err.print(f"{n} problem{'s' if n != 1 else ''}. More about a code: `lmmkit explain CODE`.")


def safe(text: str) -> str:
    """Returns `text` without terminal codes or markup."""
    from rich.markup import escape

    return escape("".join(c if c.isprintable() or c == "\n" else "?" for c in text))


def print_json(value: object) -> None:
    """Prints one JSON document on standard output."""
    typer.echo(json.dumps(value, indent=2))


def the_recipe(path: Path, root: Path | None, changes: list[str] | None):
    """Reads the recipe from a command's argument: a file, or the name of a shipped recipe."""
    from lmmkit.recipe import read_recipe
    from lmmkit.recipe.shipped import find_recipe

    return read_recipe(find_recipe(path), overrides=changes or (), root=root)
