"""Helpers for all commands: options, reading a recipe, printing problems, progress, exit codes."""

from __future__ import annotations

import errno
import json
import textwrap
from collections.abc import Callable
from copy import copy
from functools import wraps
from pathlib import Path
from typing import Annotated, Literal

import typer
from rich.console import Console, RenderableType
from rich.table import Table
from rich.text import Text

from lmmkit.commands.support.progress_display import display_on
from lmmkit.commands.support.table_layout import fitted
from lmmkit.errors import LmmkitError, MachineError
from lmmkit.errors.commands import CANNOT_WRITE
from lmmkit.memory_faults import naming_memory
from lmmkit.progress import shown_on

# Without markup and emoji codes: a path, a prompt or a record may contain brackets, or a word between colons.
out = Console(soft_wrap=True, highlight=False, markup=False, emoji=False)
err = Console(stderr=True, soft_wrap=True, highlight=False, markup=False, emoji=False)

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
STARTING = "starting"  # the task of imports, which take seconds
REFUSED = (
    errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.ENOTDIR, errno.EEXIST,
    errno.EISDIR, errno.ENAMETOOLONG, errno.ELOOP, errno.EBUSY, errno.EXDEV, errno.EIO, errno.ESTALE, errno.EMFILE,
)  # fmt: skip


def reporting(command: Callable) -> Callable:
    """Returns the command with error handling and progress: an `LmmkitError`, a file that cannot be written and too
    little memory are printed without a traceback and set the exit code; long work is shown on standard error."""

    @wraps(command)
    def run(*args, **kwargs):
        try:
            with naming_memory("this command"), shown_on(display_on(err, quiet=bool(kwargs.get("as_json")))):
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
            code = f"  [{problem.code}]" if label == "hint" else ""
            lines = f"  {label:8}  {safe(text)}{code}".replace("\n", "\n" + 12 * " ").splitlines()
            line = Text("\n".join(wrapped(each, err, 10 * (i == 0)) for i, each in enumerate(lines)))
            if code:
                line.stylize("dim", len(line) - len(code))
            err.print(line)
    n = len(error.problems)
    if n:
        err.print(f"{n} problem{'s' if n != 1 else ''}. More about a code: `lmmkit explain CODE`.")


def safe(text: str) -> str:
    """Returns `text` without terminal codes."""
    return "".join(c if c.isprintable() or c == "\n" else "?" for c in text)


def print_table(table: Table) -> None:
    """Prints a table that fits the terminal. No text is cut off, and none has terminal codes."""
    out.print(fitted(_safe_table(table), out.width))


def _safe_table(table: Table) -> Table:
    """Returns a copy of a table whose title, caption, headings and cells have no terminal codes."""
    made = copy(table)
    made.title, made.caption = (text and safe(str(text)) for text in (table.title, table.caption))
    made.columns, made.rows = [column.copy() for column in table.columns], []
    for column in made.columns:
        column.header = _safe_cell(column.header)
    for row in zip(*(column.cells for column in table.columns), strict=True):
        made.add_row(*map(_safe_cell, row))
    return made


def _safe_cell(cell: RenderableType) -> RenderableType:
    return safe(cell) if isinstance(cell, str) else cell


def print_text(text: str) -> None:
    """Prints lines of text. A terminal gets them broken between words, with the further lines indented; elsewhere they
    are as they are."""
    for line in safe(text).splitlines() or [""]:
        out.print(wrapped(line, out))


def wrapped(line: str, console: Console, more: int = 2) -> str:
    """Returns a line broken between words if a terminal is too narrow for it. `more`: how much further than its own
    indent the further lines begin."""
    if not console.is_terminal or len(line) <= console.width:
        return line
    indent = " " * (len(line) - len(line.lstrip()) + more)
    return textwrap.fill(
        line, console.width, subsequent_indent=indent, break_long_words=False, break_on_hyphens=False,
        drop_whitespace=True, replace_whitespace=False,
    )  # fmt: skip


def print_json(value: object) -> None:
    """Prints one JSON document on standard output."""
    typer.echo(json.dumps(value, indent=2))


def the_recipe(path: Path, root: Path | None, changes: list[str] | None):
    """Reads the recipe from a command's argument: a file, or the name of a shipped recipe."""
    from lmmkit.recipe import read_recipe

    return read_recipe(path, overrides=changes or (), root=root)
