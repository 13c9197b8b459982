"""Converts a data set into another form, completely or not at all, and reports what was not carried."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping
from contextlib import closing
from dataclasses import dataclass, field, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Literal

from lmmkit.data.convert.image_copies import ImageFolder
from lmmkit.data.convert.json_writer import JsonWriter
from lmmkit.data.convert.rows import Row, read_rows
from lmmkit.data.convert.shard_writer import ShardWriter
from lmmkit.data.convert.table_columns import table_columns
from lmmkit.data.convert.table_writer import TableWriter
from lmmkit.data.sources.bad_records import BadRecord
from lmmkit.data.sources.records import LISTED, Records
from lmmkit.data.tables.table_file import in_order, require_pyarrow
from lmmkit.errors import MachineError, Problem, UserError, raise_all
from lmmkit.errors.commands import CANNOT_WRITE
from lmmkit.errors.data import CONVERT_IMAGES, CONVERT_NOT_EMPTY, IMAGE_MISSING, MORE_PROBLEMS, RECORDS_EMPTY
from lmmkit.progress import counted
from lmmkit.runs.files import write_aside, write_json_atomic

TargetForm = Literal["llava", "llava-jsonl", "messages", "messages-jsonl", "parquet", "webdataset"]
Writer = JsonWriter | TableWriter | ShardWriter


@dataclass(kw_only=True)
class ConvertReport:
    """Says what a conversion did. `lost`: what was not carried, with the number of records. `notes`: what lmmkit leaves
    out, or reads in another way, when it reads the source. `refused`: the bad records that an index lists, and those
    with bad images. `images`: how many were copied. `recipe`: the keys of a source of the new data set."""

    records: int = 0
    images: int = 0
    bad_records: int = 0
    lost: Counter[str] = field(default_factory=Counter)
    notes: Mapping[str, int] = field(default_factory=dict)
    refused: list[BadRecord] = field(default_factory=list)
    recipe: dict[str, str] = field(default_factory=dict)

    def as_json(self) -> dict[str, Any]:
        """Returns the report without the list of bad records, which has a file of its own."""
        return {
            "recipe": self.recipe, "records": self.records, "bad_records": self.bad_records, "images": self.images,
            "not_carried": dict(sorted(self.lost.items())), "notes": dict(self.notes),
        }  # fmt: skip


def convert_records(records: Records, to: Path, form: TargetForm, copy: bool | None) -> ConvertReport:
    """Writes the records of a source as a folder in another form. `copy`: the images are copied, or else named as files
    of their source; None: they are copied if they must be, or if the form is `parquet`.

    The folder has the records, the folder `images` of copies, report.json, and refused.jsonl if there are bad records.
    Raises `UserError` if the folder is not empty, and for bad images if the source's policy allows none.
    """
    require_target(to, form, copy)
    inside = records.indexed.contains_images
    if copy is False and inside:
        raise UserError(CONVERT_IMAGES.at("--refer-images", got="a source that contains its images"))
    copy = inside or form in ("parquet", "webdataset") if copy is None else copy
    report = ConvertReport(notes=records.notes, refused=list(records.known_bad), bad_records=records.left_out)
    with write_aside(to) as aside, in_order():
        with closing(_writer(records, aside, form, copy)) as writer:
            bad = _write(records, writer, report, {} if copy else _missing(records))
        _refuse_images(records, bad, report)
        report.recipe = {"kind": "messages" if form == "parquet" else form.partition("-")[0]}
        report.recipe["records"] = str(to / writer.name)
        if not copy and records.indexed.image_folder:
            report.recipe["images"] = records.indexed.image_folder
        elif form not in ("parquet", "webdataset"):
            report.recipe["images"] = str(to)
        write_json_atomic(aside / "report.json", report.as_json())
        if report.refused:
            lines = "".join(json.dumps(each._asdict()) + "\n" for each in report.refused)
            (aside / "refused.jsonl").write_text(lines, encoding="utf-8")
    return report


def require_target(to: Path, form: TargetForm, copy: bool | None) -> None:
    """Checks what can be known before a source is read; the arguments are those of `convert_records`.

    Raises `UserError` if the folder is not empty or the form cannot name files of images, `MachineError` if pyarrow is
    missing for `parquet` or there can be no new folder at the place.
    """
    problems = []
    if copy is False and form == "webdataset":
        problems.append(CONVERT_IMAGES.at("--refer-images", got="WebDataset shards"))
    if (taken := _taken(to)) is not None:
        problems.append(CONVERT_NOT_EMPTY.at(str(to), got=taken))
    raise_all(problems)
    if form == "parquet":
        require_pyarrow("parquet")
    above = next(folder for folder in to.absolute().parents if folder.exists())
    try:
        with TemporaryDirectory(prefix=".lmmkit-", dir=above):
            pass
    except OSError as error:
        raise MachineError(CANNOT_WRITE.at(str(to), got=f"{error.strerror or error}, in {above}")) from error


def _taken(to: Path) -> str | None:
    """Returns what is at a place; None if a folder can be renamed to it."""
    if to.is_symlink():
        return "a link"
    if not to.is_dir():
        return "a file" if to.exists() else None
    return (
        "a folder that is not empty" if any(to.iterdir()) else "the current folder" * to.samefile(".") or None
    )


def _writer(records: Records, folder: Path, form: TargetForm, copy: bool) -> Writer:
    if form == "webdataset":
        return ShardWriter(folder)
    if form == "parquet":
        title = f"{records.path.name}: looking for columns"
        rows = counted(title, read_rows(records), len(records), "records")
        return TableWriter(folder, table_columns(rows), copy)
    kind, _, lines = form.partition("-")
    return JsonWriter(folder, kind, bool(lines), ImageFolder(folder) if copy else None)


def _missing(records: Records) -> dict[str, Problem]:
    """Returns the problems of the image files that are not there, by path."""
    return {path: IMAGE_MISSING.at(path, got=got) for _, path, got in records.indexed.missing()}


def _write(
    records: Records, writer: Writer, report: ConvertReport, missing: Mapping[str, Problem]
) -> list[Problem]:
    """Writes all records. Returns the problems of those whose images are bad or `missing`, which it leaves out."""
    found: list[Problem] = []
    title = f"{records.path.name}: writing {writer.name}"
    for row in counted(title, read_rows(records), len(records), "records"):
        lost = list(row.notes)
        try:
            raise_all(missing[image.path] for image in row.images if image.path in missing)
            report.images += writer.add(row, lost)
        except UserError as error:
            found += _bad_images(records, row, error, report)
            if len(found) > LISTED and not records.bad_records.allowed(len(records)):
                break
            continue
        report.records += 1
        report.lost.update(dict.fromkeys(lost, 1))
    return found


def _bad_images(records: Records, row: Row, error: UserError, report: ConvertReport) -> list[Problem]:
    """Returns the problems of the images of a record, with its place, and adds them to the report."""
    problems = [replace(p, got=f"{p.where}: {p.got}") for p in error.problems]
    report.bad_records += 1
    report.refused += [BadRecord.of(p, records.place(row.number), str(row.id), "image") for p in problems]
    return [replace(p, where=f"{records.where(row.number)}, {p.where}") for p in error.problems]


def _refuse_images(records: Records, bad: list[Problem], report: ConvertReport) -> None:
    """Raises `UserError` for bad images, if the policy allows none, and if no record is left."""
    if bad and not records.bad_records.allowed(len(records)):
        more = MORE_PROBLEMS.at(str(records.path), got=f"more than {LISTED} bad images", most=0)
        raise UserError([*bad[:LISTED], *[more] * (len(bad) > LISTED)])
    if not report.records:
        raise UserError(RECORDS_EMPTY.at(str(records.path), got="no record whose images can be read"))
