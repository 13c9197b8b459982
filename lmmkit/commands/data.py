"""lmmkit data make-scenes | show | check"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from lmmkit.commands.common import (
    Json,
    RecipePath,
    Root,
    Set,
    err,
    out,
    print_json,
    reporting,
    the_recipe,
)

app = typer.Typer(no_args_is_help=True, help="Make, look at and check data sets.")


@app.command("make-scenes")
@reporting
def make_scenes(
    directory: Annotated[Path, typer.Argument(help="A new or empty folder.")],
    count: Annotated[int, typer.Option(help="Training scenes.")] = 6000,
    heldout: Annotated[int, typer.Option(help="Held-out scenes.")] = 500,
    seed: Annotated[int, typer.Option(help="Another seed, other scenes.")] = 0,
    as_json: Json = False,
) -> None:
    """Draw a small data set: pictures, LLaVA JSON, a held-out test, a tokenizer. Deterministic."""
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    from lmmkit.scenes import write_scenes

    columns = (TextColumn("drawing"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=err, disable=not err.is_terminal) as bar:
        task = bar.add_task("scenes", total=count + heldout)
        report = write_scenes(
            directory, count=count, heldout=heldout, seed=seed,
            progress=lambda done, total: bar.update(task, completed=done, total=total),
        )  # fmt: skip
    if as_json:
        return print_json({
            "directory": str(report.directory), "scenes": report.scenes, "heldout_scenes": report.heldout_scenes,
            "questions": report.questions, "heldout_questions": report.heldout_questions,
            "majority": report.majority, "yes_no_share": report.yes_no_share, "vocabulary": report.vocabulary,
        })  # fmt: skip
    out.print(
        f"{report.directory}: {report.scenes} scenes, {report.questions} questions; held out {report.heldout_scenes} "
        f"and {report.heldout_questions}; the majority baseline scores {100 * report.majority:.1f} %. "
        "See README.md there."
    )


@app.command()
@reporting
def show(
    recipe: RecipePath,
    source: Annotated[str, typer.Argument(help="A name of the recipe's `data`.")],
    row: Annotated[int, typer.Option(help="Counted from 0.")] = 0,
    count: Annotated[int, typer.Option(min=1)] = 3,
    root: Root = None,
    changes: Set = None,
) -> None:
    """Print rows of a source as the model will read them, less what plugins add.

    Tokens are parted by a dot; what is supervised is bright.
    """
    from rich.markup import escape

    read = the_recipe(recipe, root, changes)
    from lmmkit.commands._rows import pieces
    from lmmkit.errors import Problem, UserError, did_you_mean
    from lmmkit.plan.prepare import prepare_bare

    if source not in read.data:
        raise UserError(
            Problem("data/no-source", "SOURCE", f"`{source}`", "a source", did_you_mean(source, read.data))
        )
    prepared = prepare_bare(read, data=[source])
    records = prepared.sources[source]
    if not 0 <= row < len(records):
        got, mend = f"row {row}", "Name one of these."
        raise UserError(Problem("data/no-row", "--row", got, f"0 to {len(records) - 1}", mend))
    for i in range(row, min(row + count, len(records))):
        sample = records[i]
        out.print(
            f"[bold]{escape(records.where(i))}[/]  {escape(sample.key)}  {sample.template}, {sample.image_shape}"
        )
        for image in sample.images:
            out.print(f"  image {escape(image.path)}")
        for text, learn in pieces(prepared, sample):
            out.print(f"[bold green]{escape(text)}[/]" if learn else f"[dim]{escape(text)}[/]", end="")
        out.print()


@app.command()
@reporting
def check(
    recipe: RecipePath,
    root: Root = None,
    changes: Set = None,
    decode: Annotated[
        bool, typer.Option("--decode", help="Read every picture whole, not its header alone.")
    ] = False,
) -> None:
    """Check every row and every picture of a recipe's data; all problems at once."""
    read = the_recipe(recipe, root, changes)
    from lmmkit.commands._rows import undecodable
    from lmmkit.data.records import check_images
    from lmmkit.errors import raise_all
    from lmmkit.plan.prepare import prepare_bare

    prepared = prepare_bare(read, data=list(read.data))
    problems = [p for records in prepared.sources.values() for p in check_images(records)]
    raise_all(
        problems
        or [p for r in prepared.sources.values() for p in undecodable(r, prepared.dims.image, decode)]
    )
    for name, records in prepared.sources.items():
        out.print(f"{name}: {len(records)} rows, all good")
