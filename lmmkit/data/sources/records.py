"""Reads the samples of one source: records of a file or of shards, checked before a run begins.

    {"id": "17", "image": "a/17.jpg", "conversations": [
        {"from": "human", "value": "<image>\\nWhat is it?"}, {"from": "gpt", "value": "A cat."}]}

`open_records` opens an index, which one pass over all records writes. A record is parsed when it is read.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol

import numpy as np

from lmmkit.api.sample import Image, ImageFit, Sample
from lmmkit.data.images import check_header
from lmmkit.data.sources.bad_records import STRICT, BadRecord, Policy, place
from lmmkit.data.sources.index_cache import Index
from lmmkit.data.sources.json_records import RawRecord
from lmmkit.data.sources.llava_json import open_json
from lmmkit.data.sources.record_parser import RecordParser
from lmmkit.data.sources.webdataset_shards import open_shards
from lmmkit.errors import Problem, UserError
from lmmkit.errors.data import IMAGE_MISSING, MORE_PROBLEMS, PATH, RECORDS_EMPTY, TOO_MANY

SHOWN = 20  # problems listed one by one


class RecordStore(Protocol):
    """Describes a store of records: a file, or shards. Good records are numbered from 0, without bad ones."""

    @property
    def path(self) -> Path: ...
    @property
    def index(self) -> Index: ...
    def __len__(self) -> int: ...
    def row(self, i: int) -> RawRecord: ...
    def key(self, i: int, own: str) -> str: ...
    def images(self, i: int, paths: tuple[str, ...]) -> tuple[Image, ...]: ...
    def place(self, i: int) -> tuple[str, int, int]: ...
    def pictures(self) -> Iterator[tuple[int, Image]]: ...
    def missing(self) -> list[tuple[int, str]]: ...
    def paths_outside(self) -> list[tuple[str, str]]: ...
    def identity(self) -> dict[str, object]: ...


@dataclass(frozen=True, kw_only=True, eq=False)
class Records(Sequence[Sample]):
    """Holds the samples of one source in file order, without bad records; `records[i]` is good record i."""

    name: str
    template: str
    image_fit: ImageFit
    rows: RecordStore
    bad_records: Policy = STRICT

    @property
    def path(self) -> Path:
        """Returns the path of the records file, or the pattern of the shards."""
        return self.rows.path

    @property
    def dropped_turns(self) -> int:
        """Returns the number of answers that came before any question and were left out."""
        return self.rows.index.meta["dropped_turns"]

    @property
    def left_out(self) -> int:
        """Returns the number of bad records that were skipped."""
        return self.rows.index.meta["bad_records"]

    @property
    def words_N(self) -> np.ndarray:
        """Returns the number of words of each record, below 0 if the record has no image."""
        return self.rows.index.arrays["rows"]["words"]

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, i: int) -> Sample:  # type: ignore[override]  # slices have no use here
        if not 0 <= i < len(self):
            raise IndexError(i)
        reader = RecordParser(template=self.template)
        record = reader.read(self.rows.row(i))
        if record is None:  # the index lists only good records
            raise UserError(replace(reader.problems[0][1], where=self.where(i)))
        return Sample(
            key=f"{self.name}:{self.rows.key(i, record.key)}",
            turns=record.turns,
            images=self.rows.images(i, record.images),
            template=self.template,
            image_fit=self.image_fit,
            meta=record.meta or {},
        )

    def where(self, i: int) -> str:
        """Returns the place of record i for a message: file, line, record."""
        return place(*self.rows.place(i))

    def identity(self) -> dict[str, object]:
        """Returns what distinguishes the data of this source from other data. Its path is not included."""
        shape = {"template": self.template, "image_fit": self.image_fit}
        return {"rows": len(self), **self.rows.identity(), **shape}


def open_records(
    name: str, *, records: Path, images: Path | None, template: str, image_fit: ImageFit,
    bad_records: Policy = STRICT,
) -> Records:  # fmt: skip
    """Returns the records of the file `records`, after checking all of them. Image paths are relative to
    `images`. Without `images`, `records` is the pattern of shards, which contain records and images.

    For the template `plain` the user's words are left out, as LLaVA does with its captions.
    Image files are not read, but a path that leads out of `images` is refused.

    Raises `UserError` with the first 20 problems and the total number.
    """
    found = Records(
        name=name, template=template, image_fit=image_fit, bad_records=bad_records,
        rows=open_record_store(Path(records), images, template),
    )  # fmt: skip
    _refuse(found)
    return found


def open_record_store(
    records: Path, images: Path | None, template: str, *, rebuild: bool = False,
    on_bad_record: Callable[[BadRecord], None] | None = None, progress: Callable[[int], None] | None = None,
) -> RecordStore:  # fmt: skip
    """Returns the record store of a source, with its index."""
    if images is None:
        return open_shards(records, template, rebuild=rebuild, on_bad_record=on_bad_record, progress=progress)
    return open_json(
        records, Path(images), template, rebuild=rebuild, on_bad_record=on_bad_record, progress=progress
    )


def _refuse(records: Records) -> None:
    """Raises `UserError` for too many bad records, no records, or image paths outside the image folder."""
    meta, where = records.rows.index.meta, str(records.path)
    problems = [bad.problem() for bad in records.rows.index.bad[:SHOWN]]
    total, most = meta["problems"], records.bad_records.allowed(meta["rows"])
    if meta["bad_records"] <= most:
        problems = []
    elif records.bad_records.kind == "skip":
        got = f"{meta['bad_records']} bad records of {meta['rows']}"
        problems.append(TOO_MANY.at(where, got=got, most=most))
    elif total > len(problems):
        got = f"{total} problems, of which {len(problems)} are listed above"
        problems.append(MORE_PROBLEMS.at(where, got=got, most=0))
    if not problems and not len(records):
        problems.append(RECORDS_EMPTY.at(where, got="no records"))
    paths_outside = (
        []
        if problems
        else [PATH.at(f"{where}, {path}", got=got) for path, got in records.rows.paths_outside()]
    )
    if len(paths_outside) > SHOWN:
        got = f"{len(paths_outside)} problems, of which {SHOWN} are listed above"
        paths_outside[SHOWN:] = [MORE_PROBLEMS.at(where, got=got, most=0)]
    if problems or paths_outside:
        raise UserError([*problems, *paths_outside])


def missing_images(records: Records, limit: int | None = None) -> list[Problem]:
    """Returns a problem for each image file that is missing or not a regular file; at most `limit` if it
    is given. Each file is checked once and reported at its first record."""
    return [IMAGE_MISSING.at(records.where(i), got=reason) for i, reason in records.rows.missing()[:limit]]


def too_many(records: Records, found: list[Problem], limit: int = SHOWN) -> list[Problem]:
    """Returns the first `limit` image problems if there are more than the source may skip, else none."""
    most = records.bad_records.allowed(len(records))
    if len(found) <= most:
        return []
    got = f"{len(found)} bad images of source `{records.name}`"
    more = TOO_MANY.at(str(records.path), got=got, most=most)
    return [*found[:limit], *[more] * (len(found) > limit or most > 0)]


def check_images(records: Records, limit: int | None = None) -> list[Problem]:
    """Returns a problem for each image with a bad header: format, size or shape; see `read_image`.

    Reads headers only. Stops at `limit` problems.
    """
    found = []
    for i, image in records.rows.pictures():
        try:
            check_header(image, records.image_fit)
        except UserError as error:
            for p in error.problems:
                found.append(replace(p, where=f"{records.where(i)}, {p.where}"))
            if len(found) == limit:
                break
    return found
