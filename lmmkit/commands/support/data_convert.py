"""lmmkit data convert: opens a data set without a recipe, converts it, and shows what was not carried."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from lmmkit.commands.support.common import STARTING, Json, print_json, print_text, reporting
from lmmkit.progress import plural, working

if TYPE_CHECKING:
    from lmmkit.data.convert.convert_records import ConvertReport
    from lmmkit.errors import Problem

SHOWN = 20  # refused records


@reporting
def convert(
    source: Annotated[Path, typer.Argument(metavar="SRC", help="A file, a pattern, or a folder of tables.")],
    target: Annotated[Path, typer.Argument(metavar="DST", help="A new or empty folder.")],
    to: Annotated[
        Literal["llava", "llava-jsonl", "messages", "messages-jsonl", "parquet", "webdataset"],
        typer.Option("--to", help="The form of the new data set."),
    ],
    kind: Annotated[
        Literal["llava", "messages", "webdataset", "coco", "vqa"] | None,
        typer.Option("--from", help="The kind of SRC. \\[default: as its name and first record say]"),
    ] = None,
    images: Annotated[
        Path | None,
        typer.Option(help="The folder of images that records name. \\[default: of JSON files, their own]"),
    ] = None,
    annotations: Annotated[
        Path | None,
        typer.Option(help="The file or pattern of annotations, if SRC is the questions of a VQA data set."),
    ] = None,
    column: Annotated[
        list[str] | None,
        typer.Option(
            metavar="PART=NAME",
            help="How the column for messages, images, system or id is called in SRC. Repeatable.",
        ),
    ] = None,
    copy_images: Annotated[
        bool | None,
        typer.Option(
            "--copy-images/--refer-images",
            help="Copy images, or name the files of SRC. "
            "\\[default: copy if SRC contains them, and for parquet and webdataset]",
        ),
    ] = None,
    skip_bad: Annotated[
        bool, typer.Option("--skip-bad", help="Leave bad records out and list them, instead of stopping.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Write a data set in another form, completely or not at all, and report what was not carried."""
    with working(STARTING):
        from lmmkit.data.convert.convert_records import convert_records, require_target
        from lmmkit.data.convert.source_kind import source_kind
        from lmmkit.data.sources.bad_records import STRICT, Policy
        from lmmkit.data.sources.records import open_records
        from lmmkit.data.sources.tables.table_names import is_table
        from lmmkit.errors import Tried, raise_all, raise_together

    columns = _columns(column or [])
    place = Tried(lambda: require_target(target, to, copy_images))
    found = Tried(lambda: kind or source_kind(source, annotations))
    raise_together((place, found) if found.error is not None else ())
    read_as = found.value
    if columns and kind is None and read_as == "llava":
        read_as = "messages"  # it reads the same turns
    raise_together((place, Tried(lambda: raise_all(_unused(read_as, columns, images, annotations)))))
    folder = images
    if read_as != "webdataset" and not (read_as == "messages" and is_table(source)):
        folder = images or source.parent
    records = open_records(
        source.name, records=source, images=folder, template="vicuna_v1", image_fit="crop",
        bad_records=Policy("skip", 1.0) if skip_bad else STRICT, columns=columns if read_as == "messages" else None,
        official=read_as if read_as in ("coco", "vqa") else None, annotations=annotations,
    )  # fmt: skip
    report = convert_records(records, target, to, copy_images)
    if as_json:
        return print_json(report.as_json())
    print_text(
        f"{source}, read as `{read_as}`, in {target}: {plural(report.records, 'record')}, "
        f"{plural(report.images, 'image')} copied"
    )
    for line in _shown(report, target):
        print_text(line)


def _unused(
    read_as: str, columns: dict[str, str], images: Path | None, annotations: Path | None
) -> Iterator[Problem]:
    """Yields the problems of options that a data set of this kind does not have, and of annotations that it needs."""
    from lmmkit.errors.data import CONVERT_ANNOTATIONS, CONVERT_UNUSED

    if columns and read_as != "messages":
        got, expected = f"a data set of kind {read_as}", "columns of a data set of kind messages"
        yield CONVERT_UNUSED.at("--column", got=got, expected=expected)
    if images is not None and read_as == "webdataset":
        expected = "no folder: shards contain their images"
        yield CONVERT_UNUSED.at("--images", got=str(images), expected=expected)
    if (read_as == "vqa") != (annotations is not None):
        got = f"a data set of kind {read_as} {'without' if annotations is None else 'with'} `--annotations`"
        yield CONVERT_ANNOTATIONS.at("--annotations", got=got)


def _columns(given: list[str]) -> dict[str, str]:
    """Returns the columns that `--column` names."""
    from lmmkit.data.sources.messages_records import COLUMNS
    from lmmkit.errors import raise_all
    from lmmkit.errors.data import CONVERT_COLUMN

    pairs = [(part, name) for part, _, name in (each.partition("=") for each in given)]
    found = dict(pairs)
    raise_all(
        CONVERT_COLUMN.at("--column", got=f"`{part}={name}`" + f" and `{part}={found[part]}`" * (found[part] != name))
        for part, name in pairs if part not in COLUMNS or not name or found[part] != name
    )  # fmt: skip
    return found


def _shown(report: ConvertReport, target: Path) -> Iterator[str]:
    """Yields the lines about what was not carried, what is read in another way, and what was refused."""
    for what, count in sorted(report.lost.items()):
        yield f"not carried, of {plural(count, 'record')}: {what}"
    for what, count in report.notes.items():
        if what not in report.lost:
            yield f"note, of {plural(count, 'record')}: {what}"
    for bad in report.refused[:SHOWN]:
        problem = bad.problem()
        yield f"refused: {problem.where}: {problem.got}; expected {problem.expected} [{problem.code}]"
    if report.bad_records:
        yield f"{plural(report.bad_records, 'record')} refused, listed in {target / 'refused.jsonl'}"
    settings = ", ".join(f"{key}: {value}" for key, value in report.recipe.items())
    yield f"in a recipe: {{{settings}, template: ..., image_fit: ...}}"
