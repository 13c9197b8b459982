"""lmmkit eval RUN_OR_MODEL"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table

from lmmkit.commands.support.common import (
    STARTING,
    Dtype,
    Json,
    Root,
    Trust,
    err,
    print_json,
    print_table,
    reporting,
)
from lmmkit.progress import working


@reporting
def evaluate(
    run: Annotated[Path, typer.Argument(metavar="RUN_OR_MODEL", help="A run, or its RUN/model/<stage>.")],
    on: Annotated[
        list[str] | None,
        typer.Option("--on", metavar="TASK", help="A task of the recipe. Repeatable. \\[default: all]"),
    ] = None,
    root: Root = None,
    probe: Annotated[
        bool, typer.Option("--probe", help="Also with a blank image, and with another sample's image.")
    ] = False,
    dtype: Dtype = "float32",
    trust_files: Trust = False,
    as_json: Json = False,
) -> None:
    """Evaluate a run's models on the tasks of its recipe; adds to RUN/results.json."""
    from lmmkit.recipe import read_recipe
    from lmmkit.runs.run_folder import RunFolder

    stage = run.name if (run / "config.json").is_file() else None
    folder = RunFolder.open(run if stage is None else run.parent.parent)
    root = root or Path(folder.root)
    recipe = read_recipe(folder.resolved, root=root)
    controls = ("blank", "swapped") if probe else None
    with working(STARTING):
        import torch

        from lmmkit.evaluate.run import TaskResult
        from lmmkit.evaluate.run import evaluate as run_tasks

    def show(results: Mapping[str, TaskResult]) -> None:
        if as_json:
            return print_json({name: result.as_json() for name, result in results.items()})
        for name, result in results.items():
            print_table(aligned(name, result.task.table(result.figures)))

    run_tasks(
        folder,
        recipe,
        only=on or (),
        controls=controls,
        stage=stage,
        trust_files=trust_files,
        dtype=getattr(torch, dtype),
        notify=lambda text: err.print(text),
        show=show,
    )


def aligned(title: str, lines: Sequence[Sequence[str]]) -> Table:
    """Returns the lines as a table; the first has the headings. Numbers are aligned to the right."""
    table = Table(title=title, title_justify="left")
    for i, heading in enumerate(lines[0]):
        table.add_column(heading, justify="right" if i else "left")
    for line in lines[1:]:
        table.add_row(*line)
    return table
