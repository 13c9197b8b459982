"""The samples of one source: rows of a records file or of shards, checked before a run begins.

    {"id": "17", "image": "a/17.jpg", "conversations": [
        {"from": "human", "value": "<image>\\nWhat is it?"}, {"from": "gpt", "value": "A cat."}]}

`open_records` opens the index that one pass over all rows left; a row is parsed when it is asked for.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np

from lmmkit.data.bad_rows import STRICT, BadRow, Policy, place
from lmmkit.data.images import check_header
from lmmkit.data.index import Index
from lmmkit.data.json_file import open_json
from lmmkit.data.json_rows import Row
from lmmkit.data.rows import RowReader
from lmmkit.data.shards import open_shards
from lmmkit.errors import Problem, UserError
from lmmkit.sample import Image, ImageShape, Sample

SHOWN = 20  # problems told one by one


class Rows(Protocol):
    """Where rows lie: a file of records, or shards. Rows are numbered from 0, bad ones left out."""

    @property
    def path(self) -> Path: ...
    @property
    def index(self) -> Index: ...
    def __len__(self) -> int: ...
    def row(self, i: int) -> Row: ...
    def key(self, i: int, own: str) -> str: ...
    def images(self, i: int, paths: tuple[str, ...]) -> tuple[Image, ...]: ...
    def place(self, i: int) -> tuple[str, int, int]: ...
    def pictures(self) -> Iterator[tuple[int, Image]]: ...
    def missing(self) -> list[tuple[int, str]]: ...
    def strays(self) -> list[tuple[str, tuple[str, str, str]]]: ...
    def identity(self) -> dict[str, object]: ...


@dataclass(frozen=True, kw_only=True, eq=False)
class Records(Sequence[Sample]):
    """The samples of one source in file order, bad rows left out; `records[i]` is good row i."""

    name: str
    template: str
    image_shape: ImageShape
    rows: Rows
    bad_rows: Policy = STRICT

    @property
    def path(self) -> Path:
        """The records file, or the pattern of the shards."""
        return self.rows.path

    @property
    def dropped_turns(self) -> int:
        """Answers that stood before any question and were left out."""
        return self.rows.index.meta["dropped_turns"]

    @property
    def left_out(self) -> int:
        """Bad rows that were passed over."""
        return self.rows.index.meta["bad_rows"]

    @property
    def words_N(self) -> np.ndarray:
        """The words of each row, below 0 where it has no picture."""
        return self.rows.index.arrays["rows"]["words"]

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, i: int) -> Sample:  # type: ignore[override]  # slices have no use here
        if not 0 <= i < len(self):
            raise IndexError(i)
        reader = RowReader(template=self.template)
        record = reader.read(self.rows.row(i))
        if record is None:  # the index promised otherwise
            fault = reader.faults[0]
            where = self.where(i)
            raise UserError(Problem(f"records/{fault.code}", where, fault.got, fault.want, fault.mend))
        return Sample(
            key=f"{self.name}:{self.rows.key(i, record.key)}",
            turns=record.turns,
            images=self.rows.images(i, record.images),
            template=self.template,
            image_shape=self.image_shape,
            meta=record.meta or {},
        )

    def where(self, i: int) -> str:
        """The place of row i for a message: file, line, row."""
        return place(*self.rows.place(i))

    def bad(self, i: int, said: str, key: str, p: Problem) -> BadRow:
        """Row i, of the id `said`, as one that turned out bad."""
        return BadRow(*self.rows.place(i), said, p.code, key, p.got, p.expected, p.hint)

    def identity(self) -> dict[str, object]:
        """What tells the source from another of as many rows. Where it lies does not matter."""
        shape = {"template": self.template, "image_shape": self.image_shape}
        return {"rows": len(self), **self.rows.identity(), **shape}


def open_records(
    name: str, *, records: Path, images: Path | None, template: str, image_shape: ImageShape,
    bad_rows: Policy = STRICT,
) -> Records:  # fmt: skip
    """The rows of the file `records`, all of them checked; picture paths are relative to `images`.
    Without `images`, `records` is the pattern of shards that hold rows and pictures.

    For the template `plain` the user's words are left out, as LLaVA does with its captions.
    Picture files are not looked at, but a path that leads out of `images` is refused.

    Raises `UserError` with the first 20 problems and the number of all of them.
    """
    found = Records(
        name=name, template=template, image_shape=image_shape, bad_rows=bad_rows,
        rows=open_rows(Path(records), images, template),
    )  # fmt: skip
    _refuse(found)
    return found


def open_rows(
    records: Path, images: Path | None, template: str, *, anew: bool = False,
    told: Callable[[BadRow], None] | None = None, progress: Callable[[int], None] | None = None,
) -> Rows:  # fmt: skip
    """Where the rows of a source lie, indexed."""
    if images is None:
        return open_shards(records, template, anew=anew, told=told, progress=progress)
    return open_json(records, Path(images), template, anew=anew, told=told, progress=progress)


def _refuse(records: Records) -> None:
    """Raises what is wrong with the rows as a whole."""
    meta, where = records.rows.index.meta, str(records.path)
    told: list[BadRow] = list(records.rows.index.bad[:SHOWN])
    problems = [bad.problem() for bad in told]
    total, most = meta["problems"], records.bad_rows.allowed(meta["rows"])
    if meta["bad_rows"] <= most:
        problems = []
    elif records.bad_rows.kind == "skip":
        got = f"{meta['bad_rows']} bad rows of {meta['rows']}"
        mend = "Mend the rows (`lmmkit data check` lists them all), or raise `bad_share`."
        problems.append(Problem("records/too-many", where, got, f"at most {most}", mend))
    elif total > len(problems):
        got = f"{total} problems, of which {len(problems)} are told above"
        problems.append(
            Problem("records/many", where, got, "none", "Mend the file; `lmmkit data check` lists all.")
        )
    if not problems and not len(records):
        problems.append(Problem("records/empty", where, "no rows", "at least one", "Mend `records`."))
    strays = (
        []
        if problems
        else [Problem("records/path", f"{where}, {path}", *wrong) for path, wrong in records.rows.strays()]
    )
    if len(strays) > SHOWN:
        got = f"{len(strays)} problems, of which {SHOWN} are told above"
        strays[SHOWN:] = [Problem("records/many", where, got, "none", "Mend the file, or the links.")]
    if problems or strays:
        raise UserError([*problems, *strays])


def missing_images(records: Records, limit: int | None = None) -> list[Problem]:
    """A problem for each picture file that is not there or is no regular file; the first `limit`
    of them if that is given. A file is looked for once and named with its first row."""
    mend, want = "Fetch the file, or mend `images` or the row.", "a picture file"
    return [
        Problem("records/image-missing", records.where(i), reason, want, mend)
        for i, reason in records.rows.missing()[:limit]
    ]


def too_many(records: Records, found: list[Problem], limit: int = SHOWN) -> list[Problem]:
    """The first `limit` of the problems of pictures, where they are more than the source may skip."""
    most = records.bad_rows.allowed(len(records))
    if len(found) <= most:
        return []
    got, want = f"{len(found)} bad pictures of source `{records.name}`", f"at most {most}"
    mend = f"Mend them; `lmmkit data check` lists them all.{' Or raise `bad_share`.' * (most > 0)}"
    more = Problem("records/too-many", str(records.path), got, want, mend)
    return [*found[:limit], *[more] * (len(found) > limit or most > 0)]


def check_images(records: Records, limit: int | None = None) -> list[Problem]:
    """A problem for each picture whose header is bad: format, size or shape; see `read_image`.

    Reads headers only; `limit` as in `missing_images`.
    """
    found = []
    for i, image in records.rows.pictures():
        try:
            check_header(image, records.image_shape)
        except UserError as error:
            for p in error.problems:
                where = f"{records.where(i)}, {p.where}"
                found.append(Problem(p.code, where, p.got, p.expected, p.hint))
            if len(found) == limit:
                break
    return found
