"""Reads the samples of one source: records of a file or of shards, checked before a run begins.

    {"id": "17", "image": "a/17.jpg", "conversations": [
        {"from": "human", "value": "<image>\\nWhat is it?"}, {"from": "gpt", "value": "A cat."}]}

`open_records` opens an index, which one pass over all records writes. A record is parsed when it is read.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from lmmkit.api.model_info import ImageSpec
from lmmkit.api.sample import ImageFit, Sample
from lmmkit.data.fits.rows import check_image
from lmmkit.data.sources.bad_records import STRICT, BadRecord, Policy, record_place
from lmmkit.data.sources.image_paths import ImageRoot
from lmmkit.data.sources.indexed_records import IndexedRecords, Indexing
from lmmkit.data.sources.joined.joined_records import open_joined
from lmmkit.data.sources.json_records import RawRecord
from lmmkit.data.sources.llava_json import open_json
from lmmkit.data.sources.record_parser import ParsedRecord, RecordParser
from lmmkit.data.sources.tables.parquet_records import open_tables
from lmmkit.data.sources.tables.patterns import files_of, json_files
from lmmkit.data.sources.tables.table_names import is_table, tables_size
from lmmkit.data.sources.webdataset_shards import open_shards, shards_size
from lmmkit.data.tables.table_file import in_order
from lmmkit.errors import Problem, Tried, UserError, raise_all, raise_together
from lmmkit.errors.data import (
    IMAGE_MISSING,
    MORE_PROBLEMS,
    RECORDS_EMPTY,
    RECORDS_PATH,
    RECORDS_UNREAD,
    TOO_MANY,
)
from lmmkit.progress import counted, plural, working

LISTED = 20  # problems that are listed one by one


@dataclass(frozen=True, kw_only=True, eq=False)
class Records(Sequence[Sample]):
    """Holds the samples of one source in file order, without bad records; `records[i]` is good record i."""

    name: str
    template: str
    image_fit: ImageFit
    indexed: IndexedRecords
    bad_records: Policy = STRICT

    @property
    def path(self) -> Path:
        """Returns the path of the records file, or the pattern of the shards."""
        return self.indexed.path

    @property
    def notes(self) -> dict[str, int]:
        """Returns what of the records is left out or read in another way than it is written, each with the
        number of records."""
        return dict(sorted(self.indexed.index.meta["notes"].items()))

    @property
    def systems(self) -> int:
        """Returns the number of records that have a system prompt."""
        return self.indexed.index.meta["systems"]

    @property
    def left_out(self) -> int:
        """Returns the number of bad records that were skipped."""
        return self.indexed.index.meta["bad_records"]

    @property
    def known_bad(self) -> tuple[BadRecord, ...]:
        """Returns the problems of the bad records, of which the index stores at most 100,000."""
        return self.indexed.index.bad

    @property
    def unread(self) -> list[Problem]:
        """Returns a problem for each place after which a file cannot be read: no record that is skipped."""
        ended = self.indexed.index.meta["ended"]
        return [RECORDS_UNREAD.at(place, got="text after which no record can be found") for place in ended]

    @property
    def words_N(self) -> np.ndarray:
        """Returns the number of words of each record, below 0 if the record has no image."""
        return self.indexed.index.arrays["records"]["words"]

    def __len__(self) -> int:
        return len(self.indexed)

    def __getitem__(self, i: int) -> Sample:  # type: ignore[override]  # slices have no use here
        if not 0 <= i < len(self):
            raise IndexError(i)
        _, record = self.read(i)
        return Sample(
            key=f"{self.name}:{self.indexed.key(i, record.key)}",
            turns=record.turns,
            images=self.indexed.images(i, record.images),
            template=self.template,
            image_fit=self.image_fit,
            system=record.system,
            meta=record.meta or {},
        )

    def read(self, i: int) -> tuple[RawRecord, ParsedRecord]:
        """Reads record i: in LLaVA's form, and as it is checked. Raises `UserError` if its file changed since it was
        indexed."""
        raw, reader = self.indexed.record(i), RecordParser(template=self.template)
        record = reader.read(raw)
        if record is None:  # the index lists only good records
            raise UserError(replace(reader.problems[0][1], where=self.where(i)))
        return raw, record

    def place(self, i: int) -> tuple[str, int, int]:
        """Returns (file, line or 0, record number) of record i."""
        return self.indexed.place(i)

    def where(self, i: int) -> str:
        """Returns the place of record i as messages name it."""
        return record_place(*self.place(i))

    def identity(self) -> dict[str, object]:
        """Returns what distinguishes the data of this source from other data. Its path is not included."""
        shape = {"template": self.template, "image_fit": str(self.image_fit)}
        return {"count": len(self), **self.indexed.identity(), **shape}


def open_records(
    name: str, *, records: Path, images: Path | None, template: str, image_fit: ImageFit,
    bad_records: Policy = STRICT, columns: Mapping[str, str] | None = None, official: str | None = None,
    annotations: Path | None = None,
) -> Records:  # fmt: skip
    """Returns the records of the file `records`, after checking all of them. Image paths are relative to
    `images`. With `columns`, the source is of kind `messages`; they map its columns. Then `records` may name parquet or
    Arrow files, and may contain its images. Otherwise, without `images`, `records` is the pattern of shards.
    `official`: the source is of kind `coco`, or of kind `vqa` with `annotations`; both may be patterns.

    For the template `plain` the user's words are left out, as LLaVA does with its captions.
    Image files are not read, but a path that leads out of `images` is refused.

    Raises `UserError` with the first 20 problems and the total number.
    """
    indexing = Indexing(template=template, columns=columns, official=official, annotations=annotations)
    with working(f"{name}: reading records", records_size(Path(records), images, indexing)) as move:
        indexing = replace(indexing, progress=move)
        indexed = open_indexed(Path(records), images, indexing)
    found = Records(
        name=name, template=template, image_fit=image_fit, bad_records=bad_records, indexed=indexed
    )
    _refuse(found)
    return found


def records_size(path: Path, images: Path | None, indexing: Indexing) -> int:
    """Returns the bytes of a source's files; 0 for files that cannot be read."""
    if indexing.columns is not None and is_table(path):
        return tables_size(path)
    if images is None and indexing.columns is None:
        return shards_size(path)
    try:
        names = [each for each in (path, indexing.annotations) if each is not None]
        return sum(each.stat().st_size for name in names for each in files_of(name))
    except (UserError, OSError, ValueError):
        return 0


def open_indexed(records: Path, images: Path | None, indexing: Indexing) -> IndexedRecords:
    """Opens the index of a source; see `open_records`."""
    if indexing.columns is not None and is_table(records):
        return open_tables(records, images, indexing)
    if indexing.official is not None and images is not None:
        return open_joined(records, images, indexing)
    if images is None and indexing.columns is None:
        return open_shards(records, indexing)
    root = Tried(lambda: ImageRoot.none() if images is None else ImageRoot.open(images))
    files = Tried(lambda: json_files(records))
    raise_together((root, files))
    return open_json(records, files.value, root.value, indexing)


def _refuse(records: Records) -> None:
    """Raises `UserError` for too many bad records, no records, or image paths outside the image folder."""
    meta, where = records.indexed.index.meta, str(records.path)
    listed = [bad.problem() for bad in records.known_bad[:LISTED]]
    problems = list(listed)
    total, most = meta["problems"], records.bad_records.allowed(meta["records"])
    if meta["bad_records"] <= most:
        problems = records.unread
    elif records.bad_records.kind == "skip":
        got = f"{plural(meta['bad_records'], 'bad record')} of {meta['records']}"
        problems.append(TOO_MANY.at(where, got=got, most=most))
    elif total > len(problems):
        got = f"{total} problems, of which {len(problems)} are listed above"
        problems.append(MORE_PROBLEMS.at(where, got=got, most=0))
    if not problems and not len(records):
        got = f"no good one of {plural(meta['records'], 'record')}" if listed else "no records"
        problems = [*listed, RECORDS_EMPTY.at(where, got=got)]
    if not problems:
        outside = records.indexed.paths_outside()
        problems = [RECORDS_PATH.at(f"{where}, {path}", got=got) for path, got in outside]
        if len(problems) > LISTED:
            got = f"{plural(len(problems), 'problem')}, of which {LISTED} are listed above"
            problems[LISTED:] = [MORE_PROBLEMS.at(where, got=got, most=0)]
    raise_all(problems)


def missing_images(records: Records, limit: int | None = None) -> list[Problem]:
    """Returns a problem for each image file that is missing or not a regular file; at most `limit` if it
    is given. Each file is checked once and reported at its first record."""
    found = records.indexed.missing()[:limit]
    return [IMAGE_MISSING.at(records.where(i), got=reason) for i, _, reason in found]


def too_many(records: Records, found: list[Problem], limit: int = LISTED) -> list[Problem]:
    """Returns the first `limit` image problems if there are more than the source may skip, else none."""
    most = records.bad_records.allowed(len(records))
    if len(found) <= most:
        return []
    got = f"{plural(len(found), 'bad image')} of source `{records.name}`"
    more = TOO_MANY.at(str(records.path), got=got, most=most)
    return [*found[:limit], *[more] * (len(found) > limit or most > 0)]


def check_images(records: Records, limit: int | None = None, spec: ImageSpec | None = None) -> list[Problem]:
    """Returns a problem for each image with a bad header: format, size or shape; see `read_image`.

    Reads headers only. Stops at `limit` problems. `spec`: of the encoder, whose tiles cannot show every shape.
    """
    found = []
    total = records.indexed.index.meta["images"]
    images = counted(f"{records.name}: image headers", records.indexed.all_images(), total, "images")
    with in_order():
        for i, image in images:
            try:
                check_image(image, records.image_fit, spec)
            except UserError as error:
                for p in error.problems:
                    found.append(replace(p, where=f"{records.where(i)}, {p.where}"))
                if len(found) == limit:
                    break
    return found
