"""A source checked to its last row and picture: progress for people, a list of everything wrong."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TextIO

from lmmkit.commands.common import err
from lmmkit.data.bad_rows import BadRow, Policy
from lmmkit.data.images import check_header, check_whole
from lmmkit.data.records import SHOWN, Records, open_rows
from lmmkit.errors import Problem, UserError
from lmmkit.recipe import Recipe


@dataclass
class Report:
    """The file that lists everything wrong, one JSON object a line; made when there is something.

    `shown`: the first problems of sources that must not have any, `refused`.
    """

    path: Path
    count: int = 0
    shown: list[Problem] = field(default_factory=list)
    refused: set[str] = field(default_factory=set)
    _file: TextIO | None = None

    def __enter__(self) -> Report:
        return self

    def __exit__(self, *caught: object) -> None:
        if self._file is not None:
            self._file.close()

    def add(self, source: str, bad: BadRow) -> None:
        """Lists one more."""
        if self._file is None:
            self._file = open(self.path, "w", encoding="utf-8")  # noqa: SIM115
        self._file.write(json.dumps({"source": source, **bad._asdict()}) + "\n")
        self.count += 1

    def refuse(self, source: str, problems: list[Problem]) -> None:
        """The source has more than it may."""
        self.refused.add(source)
        self.shown += problems


def check_source(recipe: Recipe, name: str, report: Report, decode: bool) -> dict[str, float]:
    """Reads every row of a source and looks at every picture; what was found, in numbers."""
    section = recipe.data[name]
    policy = Policy(section.bad_rows, section.bad_share)
    first: list[Problem] = []
    bad_ids: set[int] = set()

    def told(bad: BadRow) -> None:
        report.add(name, bad)
        bad_ids.add(bad.row)
        if len(first) < SHOWN:
            first.append(bad.problem())

    images = None if section.images is None else recipe.path(section.images)
    begin = time.perf_counter()
    try:
        with _bar(f"{name}: rows", _size(recipe.path(section.records)), "MB", 1e-6) as move:
            rows = open_rows(
                recipe.path(section.records), images, section.template, anew=True, told=told,
                progress=lambda done: move(done),
            )  # fmt: skip
    except UserError as error:
        for p in error.problems:
            report.add(name, BadRow(p.where, 0, 0, "", p.code, "", p.got, p.want, p.mend))
        report.refuse(name, list(error.problems))
        return {
            "rows": 0,
            "bad_rows": 0,
            "pictures": 0,
            "bad_pictures": 0,
            "row_seconds": 0,
            "picture_seconds": 0,
        }
    between, meta = time.perf_counter(), rows.index.meta
    records = Records(
        name=name, template=section.template, image_shape=section.image_shape, rows=rows, bad_rows=policy
    )
    for stray in rows.strays():
        told(BadRow(stray.where, 0, 0, "", stray.code, "image", stray.got, stray.want, stray.mend))
    pictures = _check_pictures(records, told, decode) if not first or meta["rows"] else 0
    bad_rows = meta["bad_rows"]
    bad_pictures = len(bad_ids) - bad_rows
    if len(bad_ids) > policy.allowed(meta["rows"]):
        many = len(bad_ids) > len({p.where for p in first})
        got, mend = f"{len(bad_ids)} bad rows of {meta['rows']}", f"Mend them: {report.path} lists all."
        more = Problem("records/many", str(rows.path), got, f"at most {policy.allowed(meta['rows'])}", mend)
        report.refuse(name, [*first, more] if many else first)
    elif not len(rows):
        report.refuse(
            name, [Problem("records/empty", str(rows.path), "no rows", "at least one", "Mend `records`.")]
        )
    return {
        "rows": meta["rows"], "bad_rows": bad_rows, "pictures": pictures, "bad_pictures": bad_pictures,
        "row_seconds": round(between - begin, 3), "picture_seconds": round(time.perf_counter() - between, 3),
    }  # fmt: skip


def _check_pictures(records: Records, told: Callable[[BadRow], None], decode: bool) -> int:
    """Looks at each picture once; how many there are."""
    check, count = check_whole if decode else check_header, 0
    word = "pictures" if decode else "headers"
    arrays = records.rows.index.arrays
    with _bar(f"{records.name}: {word}", len(arrays.get("pictures", arrays.get("parts", ()))), "", 1) as move:
        for i, image in records.rows.pictures():
            try:
                check(image, records.image_shape)
            except UserError as error:
                for p in error.problems:
                    found = f"{p.where}: {p.got}"
                    told(BadRow(*records.rows.place(i), "", p.code, "image", found, p.want, p.mend))
            move(count := count + 1)
    return count


def _size(path: Path) -> int:
    """Bytes of the file; 0 of a pattern."""
    try:
        return os.stat(path).st_size
    except OSError:
        return 0


@contextmanager
def _bar(title: str, total: int, unit: str, scale: float) -> Iterator[Callable[[float], None]]:
    """A bar on a terminal with rate and time left; `move(done)`."""
    from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn

    rate = TextColumn("{task.fields[rate]}")
    columns = (TextColumn(title), BarColumn(), TaskProgressColumn(), rate, TimeRemainingColumn())
    begin, told = time.perf_counter(), 0.0
    with Progress(*columns, console=err, disable=not err.is_terminal) as bar:
        task = bar.add_task(title, total=total or None, rate="")

        def move(done: float) -> None:
            nonlocal told
            now = time.perf_counter()
            if now - told > 0.2 or done >= total:  # a redraw costs more than a header
                told = now
                speed = (
                    f"{done * scale / max(now - begin, 1e-3):,.0f} {unit or 'a second'}{'/s' * bool(unit)}"
                )
                bar.update(task, completed=done, rate=speed)

        yield move
