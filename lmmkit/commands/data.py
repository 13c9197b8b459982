"""lmmkit data make-scenes | show | check | stats | convert"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.text import Text

from lmmkit.commands.support.common import (
    STARTING,
    Json,
    RecipePath,
    Root,
    Set,
    Trust,
    out,
    print_json,
    print_table,
    print_text,
    reporting,
    the_recipe,
)
from lmmkit.commands.support.data_convert import convert
from lmmkit.progress import plural, working

if TYPE_CHECKING:
    from lmmkit.data.sources.records import Records
    from lmmkit.plan.prepare import Prepared
    from lmmkit.recipe import Recipe

app = typer.Typer(no_args_is_help=True, help="Make, look at, check and convert data sets.")
app.command()(convert)


@app.command("make-scenes")
@reporting
def make_scenes(
    directory: Annotated[Path, typer.Argument(help="A new or empty folder.")],
    count: Annotated[int, typer.Option(help="Training scenes.")] = 6000,
    heldout: Annotated[int, typer.Option(help="Held-out scenes.")] = 500,
    seed: Annotated[int, typer.Option(help="Another seed, other scenes.")] = 0,
    bias: Annotated[
        float | None,
        typer.Option(help="Each question gets a usual answer; this share of the questions has it."),
    ] = None,
    kinds: Annotated[
        str | None,
        typer.Option(metavar="KIND,KIND", help="With --bias: kinds of questions. \\[default: all]"),
    ] = None,
    questions: Annotated[
        int | None, typer.Option(min=1, help="With --bias: most about a training scene. \\[default: 4]")
    ] = None,
    text_records: Annotated[
        int | None,
        typer.Option(
            min=1, help="With --bias: conversations without an image. \\[default: as many as scenes]"
        ),
    ] = None,
    as_json: Json = False,
) -> None:
    """Draw a small data set: images, LLaVA JSON, a held-out test, a tokenizer. Deterministic."""
    with working(STARTING):
        from lmmkit.errors import raise_all
        from lmmkit.errors.commands import NEEDS_BIAS
        from lmmkit.scenes import World, write_biased_scenes, write_scenes

    more = {"kinds": kinds, "questions": questions, "text-records": text_records}
    given = {name.replace("-", "_"): value for name, value in more.items() if value is not None}
    if bias is None:
        raise_all(
            NEEDS_BIAS.at(f"--{name}", got="no `--bias`") for name, value in more.items() if value is not None
        )
    with working("drawing scenes", count + heldout, "scenes") as move:
        if bias is not None:
            if kinds is not None:
                given["kinds"] = tuple(kind for kind in kinds.split(",") if kind)
            world = World(bias=bias, count=count, heldout=heldout, seed=seed, **given)
            scenes = count + heldout  # empty landscapes are images as well
            found = write_biased_scenes(
                directory, world, progress=lambda done, total: move(scenes * done / total)
            )
            return _show_world(directory, found, as_json)
        report = write_scenes(
            directory, count=count, heldout=heldout, seed=seed, progress=lambda done, total: move(done)
        )
    if as_json:
        return print_json({
            "directory": str(report.directory), "scenes": report.scenes, "heldout_scenes": report.heldout_scenes,
            "questions": report.questions, "heldout_questions": report.heldout_questions,
            "majority": report.majority, "yes_no_share": report.yes_no_share, "vocabulary": report.vocabulary,
        })  # fmt: skip
    print_text(
        f"{report.directory}: {report.scenes} scenes, {report.questions} questions; held out {report.heldout_scenes} "
        f"and {report.heldout_questions}; the majority baseline scores {100 * report.majority:.1f} %. "
        "See README.md there."
    )


def _show_world(directory: Path, found: Mapping[str, Any], as_json: bool) -> None:
    """Prints what a biased world contains."""
    if as_json:
        return print_json(
            {"directory": str(directory)} | {k: found[k] for k in ("parameters", "questions", "sha256")}
        )
    world = found["parameters"]
    print_text(
        f"{directory}: {world['count']} scenes, {world['heldout']} held out, {world['text_records']} texts."
    )
    for name, scores in found["questions"].items():
        right = (
            "no questions"
            if scores["prior"] is None
            else f"the priors alone score {100 * scores['prior']:.1f} %"
        )
        print_text(f"{name}: {plural(scores['number'], 'question')}, {right}")
    print_text("See README.md there.")


@app.command()
@reporting
def show(
    recipe: RecipePath,
    source: Annotated[
        str | None, typer.Argument(help="One of the recipe's `data`; all, if not given.")
    ] = None,
    record: Annotated[int, typer.Option(help="The number of the first record, from 0.")] = 0,
    count: Annotated[int | None, typer.Option(min=1, help="\\[default: 3; with --html 50]")] = None,
    html: Annotated[
        Path | None, typer.Option("--html", help="Write a page of samples as a stage trains on them.")
    ] = None,
    stage: Annotated[
        str | None, typer.Option(help="With --html: of the recipe. \\[default: the first with the source]")
    ] = None,
    root: Root = None,
    trust_files: Trust = False,
    changes: Set = None,
) -> None:
    """Print records of a source as the model reads them, without the tokens and views that plugins add.

    A dot separates tokens. Supervised text is in double brackets, [[ ]], and bright. With --html: all views with
    their learned tokens, and the images as the encoder gets them; without SOURCE in the order of training.
    What cannot be read is reported at the end.
    """
    read = the_recipe(recipe, root, changes)
    with working(STARTING):
        from lmmkit.errors import UserError, raise_all
        from lmmkit.errors.data import NEEDS_HTML, NO_RECORD
        from lmmkit.plan.prepare import prepare_bare

    known_source(read, source)
    if html is not None:
        asked = {"source": source, "stage": stage, "first": record, "count": count or 50}
        return _write_samples(read, html, **asked, trust_files=trust_files)
    if stage is not None:
        raise UserError(NEEDS_HTML.at("--stage", got=f"`{stage}`, and no `--html`"))
    prepared = prepare_bare(read, data=[source] if source else read.data, trust_files=trust_files)
    raise_all(
        NO_RECORD.at("--record", got=f"record {record} of {name}", last=len(records) - 1)
        for name, records in prepared.sources.items()
        if not 0 <= record < len(records)
    )
    problems = []
    for records in prepared.sources.values():
        for i in range(record, min(record + (count or 3), len(records))):
            try:
                for line in _record_lines(prepared, records, i):
                    out.print(line)
            except UserError as error:
                problems += [replace(p, where=f"{records.where(i)}, {p.where}") for p in error.problems]
    raise_all(problems)


def _record_lines(prepared: Prepared, records: Records, i: int) -> Iterator[Text | str]:
    """Yields a record as the model reads it. Raises `UserError` for what cannot be read."""
    from lmmkit.commands.support.token_pieces import pieces, tiles_text
    from lmmkit.data.image_files.image_file import image_place

    sample = records[i]
    yield Text.assemble((records.where(i), "bold"), f"  {sample.key}  {sample.template}, {sample.image_fit}")
    for image in sample.images:
        tiles = tiles_text(prepared, sample.image_fit, image)
        yield f"  image {image_place(image)}{tiles}"
    line = Text()
    for text, supervised in pieces(prepared, sample):
        line.append(
            f"[[{text.removesuffix(' ')}]] " if supervised else text,
            "bold green" if supervised else "dim",
        )
    yield line


def _write_samples(read: Recipe, to: Path, **asked: Any) -> None:
    """Writes the page of samples as a stage trains on them."""
    from lmmkit.report.data_page import data_page
    from lmmkit.report.write_page import place_page, require_place

    require_place(to)
    written = place_page(data_page(read, **asked), to)
    out.print(
        f"{written.path}: {written.size / 1e6:.2f} MB, one file that loads nothing; open it in a browser"
    )
    for line in written.warnings:
        out.print(f"marked on the page: {line}")


@app.command()
@reporting
def check(
    recipe: RecipePath,
    source: Annotated[
        str | None, typer.Argument(help="One of the recipe's `data`; all, if not given.")
    ] = None,
    root: Root = None,
    changes: Set = None,
    decode: Annotated[
        bool, typer.Option("--decode", help="Read every image in full, not only its header.")
    ] = False,
    report: Annotated[
        Path, typer.Option("--report", help="The file that lists all problems, if there are any.")
    ] = Path("bad_records.jsonl"),
    as_json: Json = False,
) -> None:
    """Check every record and every image of a recipe's data: print the first 20 problems, list all in a file.

    All records are read again. Stored indexes are not used.
    """
    read = the_recipe(recipe, root, changes)
    with working(STARTING):
        from lmmkit.commands.support.data_check import CheckReport, check_records, tiles_reader
        from lmmkit.errors import UserError, raise_all

    known_source(read, source)
    names = [source] if source else list(read.data)
    spec = tiles_reader(read, names)
    with CheckReport(report) as listed:
        found = {name: check_records(read, name, listed, decode, spec) for name in names}
    if as_json:
        path = str(report) if listed.count and listed.failed is None else None
        print_json({"sources": found, "listed": listed.count, "report": path})
        if listed.failed is not None:
            raise listed.failed
        raise typer.Exit(UserError.exit_code if listed.refused else 0)
    for name, each in found.items():
        bad = each["bad_records"] + each["bad_images"]
        verdict = f"{plural(bad, 'bad one')}, which `bad_records: skip` allows" if bad else "all good"
        if name not in listed.refused:
            out.print(f"{name}: {plural(each['records'], 'record')}, {verdict}")
        for what, count in each["notes"].items():
            out.print(f"{name}: {plural(count, 'record')}: {what}")
    if listed.failed is not None:
        out.print(f"{plural(listed.count, 'problem')}; they cannot be listed in {report}")
        listed.shown += listed.failed.problems
        if not listed.refused:
            raise listed.failed
    elif listed.count:
        out.print(f"{listed.count} problem{'s' * (listed.count != 1)} listed in {report}")
    raise_all(listed.shown)


@app.command()
@reporting
def stats(
    recipe: RecipePath,
    source: Annotated[
        str | None, typer.Argument(help="One of the recipe's `data`; all, if not given.")
    ] = None,
    sample: Annotated[
        int | None,
        typer.Option(
            min=1, metavar="N", help="Measure N records of each source, chosen at random. \\[default: all]"
        ),
    ] = None,
    root: Root = None,
    trust_files: Trust = False,
    changes: Set = None,
    as_json: Json = False,
) -> None:
    """Print what a recipe's data contains: turns, images and their sizes, rows, what is supervised and too long.

    Bad records are counted with their reasons. Of images only the headers are read.
    """
    read = the_recipe(recipe, root, changes)
    with working(STARTING):
        from lmmkit.commands.support.data_stats import measure_data
        from lmmkit.commands.support.stats_tables import stats_notes, stats_tables

    known_source(read, source)
    names = [source] if source else list(read.data)
    found = measure_data(read, names, sample=sample, trust_files=trust_files)
    if as_json:
        return print_json(found)
    for number, table in enumerate(stats_tables(found)):
        if number:
            out.print()
        print_table(table)
    for note in stats_notes(found):
        print_text(note)


def known_source(read: Recipe, source: str | None) -> None:
    """Raises `UserError` for a name that is no source."""
    from lmmkit.errors import UserError, did_you_mean
    from lmmkit.errors.data import NO_SOURCE

    if source is not None and source not in read.data:
        nearest = did_you_mean(source, read.data)
        raise UserError(NO_SOURCE.at("SOURCE", got=f"`{source}`", nearest=nearest))
