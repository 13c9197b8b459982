"""Helpers for all commands: options, reading a recipe, printing problems, progress, exit codes."""

from __future__ import annotations

import errno
import json
import textwrap
from collections.abc import Callable
from functools import wraps
from pathlib import Path
from typing import Annotated, Literal

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from lmmkit.commands.support.progress_display import display_on
from lmmkit.errors import LmmkitError, MachineError
from lmmkit.errors.commands import CANNOT_WRITE
from lmmkit.progress import shown_on

# Without markup: a path, a prompt or a record may contain brackets.
out = Console(soft_wrap=True, highlight=False, markup=False)
err = Console(stderr=True, soft_wrap=True, highlight=False, markup=False)

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

INTERRUPTED = 130
NARROW = 80  # columns; below, tables are drawn without lines
STARTING = "starting"  # the task of imports, which take seconds
REFUSED = (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.ENOTDIR)


def reporting(command: Callable) -> Callable:
    """Returns the command with error handling and progress: an `LmmkitError`, and a file that cannot be written,
    are printed without a traceback and set the exit code; long work is shown on standard error."""

    @wraps(command)
    def run(*args, **kwargs):
        try:
            with shown_on(display_on(err, quiet=bool(kwargs.get("as_json")))):
                return command(*args, **kwargs)
        except LmmkitError as error:
            show(error)
            raise typer.Exit(error.exit_code) from None
        except KeyboardInterrupt:
            err.print("stopped.")
            raise typer.Exit(INTERRUPTED) from None
        except OSError as error:
            if error.errno not in REFUSED:
                raise
            show(refused_file(error))
            raise typer.Exit(MachineError.exit_code) from None

    return run


def refused_file(error: OSError, path: Path | None = None) -> MachineError:
    """Returns the error for a file or folder that the system refuses to create or write."""
    where = path or error.filename or "the file system"
    return MachineError(CANNOT_WRITE.at(str(where), got=error.strerror or str(error)))


def show(error: LmmkitError) -> None:
    """Prints every problem and how many there are; nothing if another rank has already printed them."""
    for problem in error.problems:
        err.print(Text.assemble(("error", "bold red"), " ", (safe(problem.where), "bold")))
        for label, text in (("got", problem.got), ("expected", problem.expected), ("hint", problem.hint)):
            line = Text(f"  {label:8}  {safe(text)}".replace("\n", "\n" + 12 * " "))
            err.print(line.append(f"  [{problem.code}]", "dim") if label == "hint" else line)
    n = len(error.problems)
    if n:
        err.print(f"{n} problem{'s' if n != 1 else ''}. More about a code: `lmmkit explain CODE`.")


def safe(text: str) -> str:
    """Returns `text` without terminal codes."""
    return "".join(c if c.isprintable() or c == "\n" else "?" for c in text)


def print_table(table: Table) -> None:
    """Prints a table. On a narrow terminal it has no lines between columns. No text is cut off."""
    if out.width < NARROW:
        table.box, table.padding, table.pad_edge = None, (0, 1, 0, 0), False
    table.title, table.caption = (_wrapped(text) for text in (table.title, table.caption))
    for column in table.columns:
        column.overflow = "fold"
    out.print(table)


def _wrapped(text: object) -> str | None:
    """Returns the title or caption of a table in lines that fit, without a change if its own lines do."""
    if text is None or all(len(line) <= out.width for line in str(text).splitlines()):
        return None if text is None else str(text)
    return textwrap.fill(" ".join(str(text).split()), out.width)


def print_json(value: object) -> None:
    """Prints one JSON document on standard output."""
    typer.echo(json.dumps(value, indent=2))


def the_recipe(path: Path, root: Path | None, changes: list[str] | None):
    """Reads the recipe from a command's argument: a file, or the name of a shipped recipe."""
    from lmmkit.recipe import read_recipe
    from lmmkit.recipe.shipped import find_recipe

    return read_recipe(find_recipe(path), overrides=changes or (), root=root)
