"""lmmkit eval RUN_OR_MODEL"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table

from lmmkit.commands.support.common import Dtype, Json, Root, Trust, err, out, print_json, reporting


@reporting
def evaluate(
    run: Annotated[Path, typer.Argument(metavar="RUN_OR_MODEL", help="A run, or its RUN/model/<stage>.")],
    on: Annotated[
        list[str] | None,
        typer.Option("--on", metavar="TASK", help="A task of the recipe. Repeatable. \\[default: all]"),
    ] = None,
    root: Root = None,
    probe: Annotated[
        bool, typer.Option("--probe", help="Also on the blank and on another sample's image.")
    ] = False,
    dtype: Dtype = "float32",
    trust_files: Trust = False,
    as_json: Json = False,
) -> None:
    """Evaluate a run's models on the tasks of its recipe; adds to RUN/results.json."""
    import torch

    from lmmkit.evaluate.run import evaluate as run_tasks
    from lmmkit.recipe import read_recipe
    from lmmkit.runs.run_folder import RunFolder

    stage = run.name if (run / "config.json").is_file() else None
    folder = RunFolder.open(run if stage is None else run.parent.parent)
    root = root or Path(folder.root)
    recipe = read_recipe(folder.resolved, root=root)
    controls = ("blank", "swapped") if probe else None
    results = run_tasks(
        folder,
        recipe,
        only=on or (),
        controls=controls,
        stage=stage,
        trust_files=trust_files,
        dtype=getattr(torch, dtype),
        notify=lambda text: err.print(text),
    )
    if as_json:
        return print_json(results)
    for name, result in results.items():
        out.print(task_table(name, result))


def task_table(name: str, result: dict) -> Table:
    """One task's figures, aligned."""
    if "accuracy" in result:
        return _accuracy_table(name, result)
    table = Table(title=name, title_justify="left")
    for column in ("figure", "value", "chance", "n"):
        table.add_column(column, justify="left" if column == "figure" else "right")
    for term, figures in result.items():
        if isinstance(figures, dict):
            _rows(table, term, figures)
    return table


def _rows(table: Table, term: str, figures: dict) -> None:
    chance = figures["chance"]
    table.add_row(
        term, f"{figures['value']:.4f}", "" if chance is None else f"{chance:.4f}", str(figures["n"])
    )
    for key, reading in figures.get("metrics", {}).items():
        _rows(table, f"  {term} {key}", reading)


def _accuracy_table(name: str, result: dict) -> Table:
    kinds = [key for key in result if key.startswith("accuracy")]
    table = Table(title=f"{name}  (majority baseline {percent(result['majority'])})", title_justify="left")
    table.add_column("questions")
    for kind in kinds:
        table.add_column(kind.removeprefix("accuracy_").replace("accuracy", "image"), justify="right")
    table.add_column("n", justify="right")
    for kind, row in {**result["by_type"], "all": result}.items():
        table.add_row(kind, *(interval(row[k]) for k in kinds), str(row[kinds[0]]["n"]))
    return table


def interval(figure: dict) -> str:
    """'76.1 (74.0-78.2)', in percent."""
    return f"{percent(figure['value'])} ({percent(figure['low'])}-{percent(figure['high'])})"


def percent(value: float) -> str:
    """One decimal, without the sign."""
    return f"{100 * value:.1f}"
