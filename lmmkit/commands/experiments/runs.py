"""lmmkit runs FOLDER"""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Table

from lmmkit.commands.support.common import Json, out, print_json, print_table, print_text, reporting
from lmmkit.progress import duration

if TYPE_CHECKING:
    from lmmkit.runs.list_runs import RunSummary


@reporting
def show_runs(
    folder: Annotated[
        Path | None,
        typer.Argument(help="A folder with runs in it, at any depth. \\[default: the current folder]"),
    ] = None,
    compare: Annotated[
        tuple[Path, Path] | None, typer.Option(metavar="A B", help="Two runs to show next to each other.")
    ] = None,
    as_json: Json = False,
) -> None:
    """List the runs below a folder: recipe, state, stage, step, loss and the first figure of the evaluation.

    The loss is the mean of the last 20 logged steps. Done: the model of the last stage is written.
    """
    from lmmkit.errors import UserError
    from lmmkit.errors.report import SAME_RUN
    from lmmkit.errors.training import NOT_A_FOLDER, RUNS_COMPARE
    from lmmkit.runs.list_runs import find_runs, summarise_run
    from lmmkit.runs.run_folder import RunFolder

    if compare is not None:
        if folder is not None:
            raise UserError(RUNS_COMPARE.at(str(folder), got="both"))
        pair = [RunFolder.open(path) for path in compare]
        if pair[0].path.resolve() == pair[1].path.resolve():
            raise UserError(SAME_RUN.at(str(compare[1]), got=f"the run {compare[0]} itself"))
        both = [summarise_run(run) for run in pair]
        return _print_as_json(both) if as_json else _print_pair(*both)
    folder = folder or Path()
    if not folder.is_dir():
        raise UserError(NOT_A_FOLDER.at(str(folder), got="a file" if folder.exists() else "no such folder"))
    found = [summarise_run(run) for run in find_runs(folder)]
    if as_json:
        return _print_as_json(found)
    if not found:
        return out.print(f"{folder}: no run in it or below it.")
    table = Table()
    for column in ("run", "recipe", "state", "stage", "step", "loss", "first figure"):
        table.add_column(column, justify="right" if column in ("step", "loss") else "left")
    for each in found:
        first = next((f"{name} {value:.4g}" for name, value in each.figures.items()), "")
        path = each.run.path
        table.add_row(
            str(path.relative_to(folder)) if path != folder else path.name or str(path.resolve().name),
            each.recipe, each.state, each.stage, f"{each.step:,}", _number(each.loss), first,
        )  # fmt: skip
    print_table(table)
    for each in found:
        if each.problem:
            print_text(f"damaged: {each.problem}")


def _print_as_json(found: Sequence[RunSummary]) -> None:
    print_json([{**asdict(each), "run": str(each.run.path)} for each in found])


def _print_pair(a: RunSummary, b: RunSummary) -> None:
    """Prints two runs next to each other: where each is, what it cost, and every figure of either."""
    from lmmkit.runs.list_runs import BEST

    table = Table(title=f"A: {a.run.path}\nB: {b.run.path}", title_justify="left")
    for column in ("", "A", "B", "B - A"):
        table.add_column(column, justify="left" if not column else "right")
    for name in ("state", "recipe", "stage"):
        table.add_row(name, getattr(a, name), getattr(b, name), "")
    table.add_row("started (UTC)", *(each.started[:16].replace("T", " ") for each in (a, b)), "")
    table.add_row("step", f"{a.step:,}", f"{b.step:,}", f"{b.step - a.step:+,}")
    either = {"loss": (a.loss, b.loss)}
    either |= {name: (a.figures.get(name), b.figures.get(name)) for name in {**a.figures, **b.figures}}
    table.add_row("CPU time", *(duration(x) if x is not None else "" for x in (a.cpu_seconds, b.cpu_seconds)))
    for name, (left, right) in either.items():
        if name.count("/") < 2 or name.startswith(BEST):  # "TASK/FIGURE/DETAIL" is a detail
            change = "" if left is None or right is None else f"{right - left:+.4g}"
            table.add_row(name, _number(left), _number(right), change)
    print_table(table)
    for each in (a, b):
        if each.problem:
            print_text(f"damaged: {each.problem}")
    command = shlex.join(["lmmkit", "diff", str(a.run.path), str(b.run.path)])
    print_text(
        f"Differences of the recipes: `{command}`. Whether the answers differ by more than chance: `lmmkit answers "
        "compare`."
    )


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.4g}"
