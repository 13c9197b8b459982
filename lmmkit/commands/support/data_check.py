"""Checks every record and image of a source, shows progress, and lists all problems."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, TextIO

from lmmkit.api.model_info import ImageSpec
from lmmkit.api.sample import AnyRes
from lmmkit.commands.support.common import refused_file
from lmmkit.data.fits.rows import check_image
from lmmkit.data.sources.bad_records import BadRecord, Policy
from lmmkit.data.sources.indexed_records import IndexedRecords, Indexing
from lmmkit.data.sources.records import LISTED, Records, open_indexed, records_size
from lmmkit.data.tables.table_file import in_order
from lmmkit.errors import MachineError, Problem, UserError
from lmmkit.errors.data import MORE_PROBLEMS, RECORDS_EMPTY, RECORDS_PATH
from lmmkit.plan.pretrained import resolve_encoder
from lmmkit.plan.shapes import image_spec
from lmmkit.progress import plural, working
from lmmkit.recipe import Recipe, VisionFrom

FIGURES = ("records", "bad_records", "images", "bad_images", "record_seconds", "image_seconds")


@dataclass
class CheckReport:
    """Writes a file with all problems, one JSON object a line. Creates it at the first problem; an old one is removed.

    `refused`: the sources with more problems than allowed. `shown`: their first problems. `failed`: the error
    of a file that cannot be written; the check goes on without it.
    """

    path: Path
    count: int = 0
    shown: list[Problem] = field(default_factory=list)
    refused: set[str] = field(default_factory=set)
    failed: MachineError | None = None
    _file: TextIO | None = None

    def __enter__(self) -> CheckReport:
        with suppress(OSError):  # what is wrong with the path is reported when there is something to write
            self.path.unlink()
        return self

    def __exit__(self, *caught: object) -> None:
        if self._file is not None:
            self._writing(self._file.close)

    def add(self, source: str, bad: BadRecord) -> None:
        """Writes one bad record to the file."""
        self.count += 1
        if self.failed is None:
            self._writing(lambda: self._write(json.dumps({"source": source, **bad._asdict()}) + "\n"))

    def _write(self, line: str) -> None:
        if self._file is None:
            self._file = open(self.path, "w", encoding="utf-8")  # noqa: SIM115
        self._file.write(line)

    def _writing(self, action: Callable[[], object]) -> None:
        try:
            action()
        except OSError as error:
            self.failed = self.failed or refused_file(error, self.path)

    def refuse(self, source: str, problems: list[Problem]) -> None:
        """Records that a source has more problems than allowed."""
        self.refused.add(source)
        self.shown += problems


def tiles_reader(recipe: Recipe, names: Iterable[str]) -> ImageSpec | None:
    """Returns how the recipe's encoder and connector read images, if one of the sources cuts images into tiles for it.

    Raises `UserError` if the encoder cannot be opened.
    """
    vision = recipe.model.vision
    if vision is None or not any(isinstance(recipe.data[name].image_fit, AnyRes) for name in names):
        return None
    if isinstance(vision, VisionFrom):
        _, vision = resolve_encoder(recipe, "model.vision", vision)
    return image_spec(replace(recipe, model=replace(recipe.model, vision=vision)))


def check_records(
    recipe: Recipe, name: str, report: CheckReport, decode: bool, spec: ImageSpec | None
) -> dict[str, Any]:
    """Reads every record of a source and checks every image. Returns counts, times in seconds, and `notes`:
    what of the good records is left out or read in another way, with the number of records. `spec`: what
    `tiles_reader` returns."""
    section = recipe.data[name]
    policy, first = Policy(section.bad_records, section.bad_share), list[Problem]()

    def on_bad_record(bad: BadRecord) -> None:
        report.add(name, bad)
        if len(first) < LISTED:
            first.append(bad.problem())

    begin = time.perf_counter()
    try:
        indexed = index_source(recipe, name, f"{name}: records", rebuild=True, on_bad_record=on_bad_record)
    except UserError as error:
        for p in error.problems:
            report.add(name, BadRecord.of(p, (p.where, 0, 0)))
        report.refuse(name, list(error.problems))
        return {**dict.fromkeys(FIGURES, 0), "notes": {}}
    between, meta = time.perf_counter(), indexed.index.meta
    records = Records(
        name=name, template=section.template, image_fit=section.image_fit, indexed=indexed, bad_records=policy
    )
    image_count, bad_images = _check_images(records, on_bad_record, decode, spec)
    bad, most = meta["bad_records"] + bad_images, policy.allowed(meta["records"])
    if bad > most:
        both = [plural(meta["bad_records"], "bad record"), plural(bad_images, "bad image")]
        got = f"{' and '.join(both)}, all listed in {report.path}"
        more = MORE_PROBLEMS.at(str(indexed.path), got=got, most=most)
        report.refuse(name, [*first, *[more] * (bad > len(first))])
    elif records.unread:
        report.refuse(name, [*first, *records.unread])
    elif not len(indexed):
        report.refuse(name, [RECORDS_EMPTY.at(str(indexed.path), got="no records")])
    seconds = round(between - begin, 3), round(time.perf_counter() - between, 3)
    counts = meta["records"], meta["bad_records"], image_count, bad_images
    return {**dict(zip(FIGURES, (*counts, *seconds), strict=True)), "notes": records.notes}


def index_source(recipe: Recipe, name: str, title: str, **how: Any) -> IndexedRecords:
    """Returns the index of a source, however many of its records are bad, and shows the pass over its files as a task.

    `how`: further fields of `Indexing`. Raises `UserError` for a file that cannot be read.
    """
    section = recipe.data[name]
    path, images, annotations = (
        recipe.path(each) if each is not None else None
        for each in (section.records, section.images, section.annotations)
    )
    assert path is not None, "the schema requires `records`"
    indexing = Indexing(
        template=section.template, columns=section.mapped(), official=section.official, annotations=annotations,
        **how,
    )  # fmt: skip
    with working(title, records_size(path, images, indexing)) as move:
        return open_indexed(path, images, replace(indexing, progress=move))


def _check_images(
    records: Records, on_bad_record: Callable[[BadRecord], None], decode: bool, spec: ImageSpec | None
) -> tuple[int, int]:
    """Checks each image of a source once. Returns (images, bad images)."""
    indexed, bad, count = records.indexed, 0, 0
    paths_outside = dict(indexed.paths_outside())
    title, total = f"{records.name}: {'images' if decode else 'headers'}", indexed.index.meta["images"]
    with working(title, total, "images") as move, in_order():
        for i, image in indexed.all_images():
            found: list[Problem] = []
            if image.path in paths_outside:
                found = [RECORDS_PATH.at(image.path, got=paths_outside[image.path])]
            else:
                try:
                    check_image(image, records.image_fit, spec, whole=decode)
                except UserError as error:
                    found = list(error.problems)
            for p in found:
                on_bad_record(
                    BadRecord.of(replace(p, got=f"{p.where}: {p.got}"), records.place(i), key="image")
                )
            bad += bool(found)
            move(count := count + 1)
    return count, bad
