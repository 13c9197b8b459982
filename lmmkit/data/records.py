"""Records in LLaVA's format: a JSON list or JSONL of conversations about images.

    {"id": "17", "image": "a/17.jpg", "conversations": [
        {"from": "human", "value": "<image>\\nWhat is it?"}, {"from": "gpt", "value": "A cat."}]}

`open_records` reads and checks every row at once, so that no row fails in the middle of a run.
"""

from __future__ import annotations

import os
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from lmmkit.data.images import check_header
from lmmkit.data.paths import ImageRoot
from lmmkit.data.rows import Record, RowReader
from lmmkit.data.strict_json import read_rows
from lmmkit.errors import Problem, UserError
from lmmkit.sample import Image, ImageShape, Sample

SHOWN = 20  # problems told one by one


@dataclass(frozen=True, kw_only=True, eq=False)
class Records(Sequence[Sample]):
    """The samples of one source, in file order; `records[i]` is row i, counted from 0.

    `dropped_turns`: answers that stood before any question and were left out. `renamed`: rows
    whose id another row had before, so that their key carries the row as well.
    """

    name: str
    path: Path
    root: str
    template: str
    image_shape: ImageShape
    rows: list[Record] = field(repr=False)
    dropped_turns: int = 0
    renamed: int = 0

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, i: int) -> Sample:  # type: ignore[override]  # slices have no use here
        row = self.rows[i]
        return Sample(
            key=row.key,
            turns=row.turns,
            images=tuple(Image(os.path.join(self.root, path)) for path in row.images),
            template=self.template,
            image_shape=self.image_shape,
            meta=row.meta or {},
        )

    def where(self, i: int) -> str:
        """The place of row i for a message: file, line, row."""
        return f"{self.path}:{self.rows[i].line} (row {i})"


def open_records(
    name: str,
    *,
    records: Path,
    images: Path,
    template: str,
    image_shape: ImageShape,
) -> Records:
    """Reads and checks all rows of the file `records`; picture paths are relative to `images`.

    For the template `plain` the user's words are left out, as LLaVA does with its captions.
    Picture files are not looked at, but a path that leads out of `images` is refused.

    Raises `UserError` with the first 20 problems and the number of all of them.
    """
    problems: list[Problem] = []
    total = 0
    rows: list[Record] = []
    keys: set[str] = set()
    dropped = renamed = 0
    root = ImageRoot.open(images)
    for row in read_rows(Path(records)):
        reader = RowReader(root=root, template=template)
        record = reader.read(row)
        if record is None:
            total += len(reader.faults)
            for code, got, want, mend in reader.faults[: SHOWN - len(problems)]:
                where = f"{records}:{row.line} (row {row.index}{reader.said})"
                problems.append(Problem(f"records/{code}", where, got, want, mend))
            continue
        dropped += reader.dropped
        key = f"{name}:{record.key or row.index}"
        renamed += key in keys
        while key in keys:
            key = f"{key}#{row.index}"
        keys.add(key)
        rows.append(record._replace(key=key))
    if total > len(problems):
        got = f"{total} problems, of which {len(problems)} are told above"
        problems.append(Problem("records/many", str(records), got, "none", "Mend the file."))
    if not problems and not rows:
        problems.append(Problem("records/empty", str(records), "no rows", "at least one", "Mend `records`."))
    if problems:
        raise UserError(problems)
    return Records(
        name=name, path=Path(records), root=root.path, template=template,
        image_shape=image_shape, rows=rows, dropped_turns=dropped, renamed=renamed,
    )  # fmt: skip


def missing_images(records: Records, limit: int | None = None) -> list[Problem]:
    """A problem for each picture file that is not there or is no regular file; the first `limit`
    of them if that is given. A file is looked for once and named with its first row."""
    found = []
    for i, path in _files(records):
        reason = _absent(path)
        if reason:
            mend = "Fetch the file, or mend `images` or the row."
            want = "a picture file"
            found.append(Problem("records/image-missing", records.where(i), reason, want, mend))
            if len(found) == limit:
                break
    return found


def pictures_digest(records: Records) -> str:
    """Number, bytes and names of the picture files in short; no picture is read."""
    crc = total = count = 0
    for _, path in _files(records):
        size = os.stat(path).st_size
        crc = zlib.crc32(f"{path.removeprefix(records.root)} {size}\n".encode(), crc)
        total, count = total + size, count + 1
    return f"{count} files, {total} bytes, crc32 {crc:08x}"


def check_images(records: Records, limit: int | None = None) -> list[Problem]:
    """A problem for each picture whose header is bad: format, size or shape; see `read_image`.

    Reads headers only; `limit` as in `missing_images`.
    """
    found = []
    for i, path in _files(records):
        try:
            check_header(path, records.image_shape)
        except UserError as error:
            for p in error.problems:
                where = f"{records.where(i)}, {p.where}"
                found.append(Problem(p.code, where, p.got, p.want, p.mend))
            if len(found) == limit:
                break
    return found


def _files(records: Records) -> Iterator[tuple[int, str]]:
    seen: set[str] = set()
    for i, row in enumerate(records.rows):
        for path in row.images:
            if path not in seen:
                seen.add(path)
                yield i, os.path.join(records.root, path)


def _absent(path: str) -> str:
    """Why there is no picture file at `path`; empty if there is one."""
    if os.path.isfile(path):
        return ""
    return f"no regular file {path}" if os.path.lexists(path) else f"no file {path}"
