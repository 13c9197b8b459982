"""lmmkit report RUN..."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from lmmkit.commands.support.common import STARTING, print_text, reporting
from lmmkit.progress import working

Paths = Annotated[
    list[Path],
    typer.Argument(
        metavar="RUN...", help="Finished runs, or one grid. The others are compared with the first."
    ),
]


@reporting
def report(
    runs: Paths,
    to: Annotated[Path, typer.Option("--out", help="The page.")] = Path("report.html"),
    on: Annotated[
        str | None,
        typer.Option(
            "--on", metavar="TASK", help="Whose questions. \\[default: the first task with answers]"
        ),
    ] = None,
) -> None:
    """Write one HTML page about runs: verdict, accuracy, curves, puzzles, answers, setup."""
    with working(STARTING):
        from lmmkit.report.write_page import write_page

    with working("writing the page"):
        written = write_page(runs, to, on=on)
    print_text(
        f"{written.path}: {written.size / 1e6:.2f} MB, one file that loads nothing; open it in a browser"
    )
    for line in written.warnings:
        print_text(f"marked on the page: {line}")
