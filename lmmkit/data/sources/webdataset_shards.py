"""Reads WebDataset shards as a source: tar files in which `KEY.json` and `KEY.jpg` are one record.

A record with several images has `KEY.0.jpg`, `KEY.1.jpg`, in the order of its markers. The `webdataset`
package's rule pairs the members. An index of their offsets gives random access to every record, so the
order is a function of position, as for JSON. Images are read from the shards; nothing is unpacked.
"""

from __future__ import annotations

import glob
import itertools
import math
import os
import re
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from lmmkit.api.sample import Image
from lmmkit.data.sources.bad_records import BadRecord
from lmmkit.data.sources.index_cache import BAD_KEPT, Index, open_index
from lmmkit.data.sources.json_records import RawRecord, row_of
from lmmkit.data.sources.json_stream import MAX_ROW
from lmmkit.data.sources.record_parser import RecordParser, measured_record
from lmmkit.data.sources.tar_members import Member, members
from lmmkit.errors import MachineError, UserError
from lmmkit.errors.data import CHANGED, LONG, NO_WEBDATASET, RECORDS_FILE, SHARD

ROW = np.dtype([("shard", "<u4"), ("offset", "<u8"), ("length", "<u8"), ("row", "<u8"), ("words", "<i4"),
                ("again", "<u1"), ("first", "<u8"), ("pictures", "<u2")])  # fmt: skip
PART = np.dtype([("offset", "<u8"), ("size", "<u8")])
PICTURES = ("jpg", "jpeg", "png", "webp", "gif", "bmp")
MAX_SHARDS = 100_000
_RANGE = re.compile(r"\{(-?[0-9]{1,18})\.\.(-?[0-9]{1,18})")
OPEN_SHARDS = 64  # files that a process keeps open


@dataclass(frozen=True, kw_only=True, eq=False)
class ShardRecords:
    """Reads the good records of the shards that the pattern `path` names, by number."""

    path: Path
    shards: tuple[Path, ...]
    index: Index
    _kept: dict[int, int] = field(default_factory=dict, init=False, repr=False)

    def __reduce__(self) -> tuple[object, ...]:
        return _opened, (self.path, self.shards, self.index)

    def __len__(self) -> int:
        return len(self.index.arrays["rows"])

    def row(self, i: int) -> RawRecord:
        """Reads good record i from its shard. Raises `UserError` if the shard changed since it was indexed."""
        at = self.index.arrays["rows"][i]
        number = int(at["shard"])
        shard = self.shards[number]
        try:
            stat = os.fstat(self._file(number))
            data = os.pread(self._file(number), int(at["length"]), int(at["offset"]))
        except OSError as error:
            raise _refused(shard, error.strerror or str(error), "a shard") from error
        if [stat.st_size, stat.st_mtime_ns] != self.index.meta["stat"][number]:
            raise UserError(CHANGED.at(str(shard), got="another size or time of change"))
        return _with_pictures(row_of(data, int(at["row"]), 0), int(at["pictures"]))

    def key(self, i: int, own: str) -> str:
        """Returns the key of record i in its source: its id, plus the record number if the id is a repeat."""
        at = self.index.arrays["rows"][i]
        return f"{own or at['row']}" + f"#{at['row']}" * int(at["again"])

    def images(self, i: int, paths: tuple[str, ...]) -> tuple[Image, ...]:
        """Returns the images of record i."""
        at, parts = self.index.arrays["rows"][i], self.index.arrays["parts"]
        shard, first = str(self.shards[int(at["shard"])]), int(at["first"])
        chosen = parts[first : first + int(at["pictures"])]
        return tuple(Image(shard, part=(int(part["offset"]), int(part["size"]))) for part in chosen)

    def place(self, i: int) -> tuple[str, int, int]:
        """Returns (shard, 0, record number in the source) of record i."""
        at = self.index.arrays["rows"][i]
        return str(self.shards[int(at["shard"])]), 0, int(at["row"])

    def pictures(self) -> Iterator[tuple[int, Image]]:
        """Yields every image, with the number of its record."""
        for i in range(len(self)):
            for image in self.images(i, ()):
                yield i, image

    def missing(self) -> list[tuple[int, str]]:
        """Returns []: an image that is not in a shard is not in the index."""
        return []

    def paths_outside(self) -> list[tuple[str, str]]:
        """Returns []: an image is a part of a shard."""
        return []

    def identity(self) -> dict[str, object]:
        """Returns what distinguishes this data from other data: sizes of the shards, and checksums of their
        JSON and of the index of their members."""
        sizes = [path.stat().st_size for path in self.shards]
        rows, parts = self.index.arrays["rows"], self.index.arrays["parts"]
        return {
            "records": f"{len(sizes)} shards, {sum(sizes)} bytes, crc32 {self.index.meta['crc32']:08x}",
            "pictures": f"{len(parts)} members, crc32 {zlib.crc32(parts.tobytes(), zlib.crc32(rows.tobytes())):08x}",
        }

    def _file(self, number: int) -> int:
        if number not in self._kept:
            if len(self._kept) >= OPEN_SHARDS:
                os.close(self._kept.pop(next(iter(self._kept))))
            self._kept[number] = os.open(self.shards[number], os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        return self._kept[number]


def _opened(path: Path, shards: tuple[Path, ...], index: Index) -> ShardRecords:
    return ShardRecords(path=path, shards=shards, index=index)


def open_shards(
    pattern: Path, template: str, *, rebuild: bool = False, on_bad_record: Callable[[BadRecord], None] | None = None,
    progress: Callable[[int], None] | None = None,
) -> ShardRecords:  # fmt: skip
    """Returns the shards with their index; `on_bad_record`, `progress`, `rebuild` as in `open_json`.

    Raises `UserError` for a pattern that matches no file and for a file that is not an archive, and
    `MachineError` if the package is missing.
    """
    shards = tuple(_named(pattern))
    key = f"shards {os.path.realpath(pattern)} {'plain' if template == 'plain' else 'talk'}"
    build = lambda: _Pass(shards, template, on_bad_record, progress).index()  # noqa: E731
    return ShardRecords(path=pattern, shards=shards, index=open_index(key, shards, build, rebuild=rebuild))


def _named(pattern: Path) -> list[Path]:
    """Returns the files of a pattern with braces ({000..099}), wildcards, or neither."""
    if "\0" in str(pattern):
        raise _refused(pattern, "a NUL in it", "a pattern of shards")
    braces = _package("braceexpand").braceexpand
    spans = (abs(int(a) - int(b)) + 1 for a, b in _RANGE.findall(str(pattern)))
    many = math.prod(spans) > MAX_SHARDS  # the package makes a list of each range
    try:
        names = [] if many else list(itertools.islice(braces(str(pattern)), MAX_SHARDS + 1))
    except ValueError as error:
        raise _refused(pattern, str(error), "a pattern of shards") from error
    if many or len(names) > MAX_SHARDS:
        raise _refused(pattern, f"more than {MAX_SHARDS} names", f"at most {MAX_SHARDS}")
    found = [path for name in names for path in (sorted(glob.glob(name)) if _wild(name) else [name])]
    if not found:
        raise _refused(pattern, "no such file", "shards")
    return [Path(path) for path in found]


def _wild(name: str) -> bool:
    return any(mark in name for mark in "*?[")


def _package(name: str):
    """Imports a module of `pip install -e ".[webdataset]"` only when needed, because this takes a second."""
    import importlib

    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise MachineError(NO_WEBDATASET.at("kind: webdataset", got=f"no package {name}")) from error


def _refused(path: Path, got: str, expected: str) -> UserError:
    return UserError(RECORDS_FILE.at(str(path), got=got, expected=expected))


def _with_pictures(row: RawRecord, count: int) -> RawRecord:
    """Returns the record with `image` replaced by one name for each image member of its key."""
    if not isinstance(row.value, dict):
        return row
    return row._replace(value={**row.value, "image": [f"picture-{i}" for i in range(count)]})


class _Pass:
    """Makes one pass over the headers of all shards, and over the JSON in them."""

    def __init__(self, shards, template, on_bad_record, progress) -> None:
        self.shards, self.template = shards, template
        self.on_bad_record, self.progress = (
            on_bad_record or (lambda bad: None),
            progress or (lambda size: None),
        )
        self.rows: list[tuple[int, ...]] = []
        self.parts: list[tuple[int, int]] = []
        self.keys: set[str] = set()
        self.bad: list[BadRecord] = []
        self.meta = dict.fromkeys(("rows", "bad_records", "problems", "dropped_turns", "crc32"), 0)

    def index(self) -> Index:
        """Returns everything that the pass found. Raises `UserError` with all broken shards."""
        stats, done, problems = [], 0, []
        for number, shard in enumerate(self.shards):
            try:
                for sample in _samples(shard):
                    self.sample(number, sample)
                stat = os.stat(shard)
                stats.append([stat.st_size, stat.st_mtime_ns])
                self.progress(done := done + stat.st_size)
            except UserError as error:
                problems += error.problems
        if problems:
            raise UserError(problems)
        arrays = {"rows": np.array(self.rows, ROW), "parts": np.array(self.parts, PART)}
        return Index({**self.meta, "stat": stats, "pictures": len(self.parts)}, arrays, tuple(self.bad))

    def sample(self, number: int, sample: dict) -> None:
        """Adds the record of one key of a shard to the index, or reports it as bad."""
        shard, at = self.shards[number], self.meta["rows"]
        self.meta["rows"] += 1
        record, row, reader = None, RawRecord(at, 0), RecordParser(template=self.template)
        pictures = [sample[kind] for kind in sample if kind.rpartition(".")[2] in PICTURES]
        member: Member | None = sample.get("json")
        if member is None:
            got = f"key {sample['__key__'][:80]!a} without JSON"
            reader.wrong(SHARD, "", got, expected="a member KEY.json")
        elif member.size > MAX_ROW:
            reader.wrong(LONG, "", f"JSON of {member.size} bytes", most=f"{MAX_ROW} bytes")
        else:
            with open(shard, "rb") as file:
                data = os.pread(file.fileno(), member.size, member.offset)
            self.meta["crc32"] = zlib.crc32(data, self.meta["crc32"])
            row = _with_pictures(row_of(data, at, 0), len(pictures))
            record = reader.read(row)
        if record is None or member is None:
            self.refuse(shard, at, reader, sample["__key__"])
            return
        found = measured_record(record, row.value, reader.dropped)
        again, key = 0, found.key or str(at)
        while key in self.keys:
            again, key = again + 1, f"{key}#{at}"
        self.keys.add(key)
        words = found.words if pictures else -found.words
        first = len(self.parts)
        self.parts += [(picture.offset, picture.size) for picture in pictures]
        self.rows.append(
            (number, member.offset, member.size, at, words, min(again, 255), first, len(pictures))
        )
        self.meta["dropped_turns"] += found.dropped

    def refuse(self, shard: Path, at: int, reader: RecordParser, key: str) -> None:
        """Reports all problems of a bad record."""
        self.meta["bad_records"] += 1
        self.meta["problems"] += len(reader.problems)
        for part, problem in reader.problems:
            bad = BadRecord.of(problem, (str(shard), 0, at), reader.said or key, part)
            self.on_bad_record(bad)
            if len(self.bad) < BAD_KEPT:
                self.bad.append(bad)


def _samples(shard: Path) -> Iterator[dict]:
    """Yields the members of each key together, by the package's rule: {"__key__": ..., kind: member}."""
    group = _package("webdataset.tariterators").group_by_keys
    listed = (
        {"fname": member.name, "data": member, "__url__": str(shard)}
        for member in members(shard)
        if not member.name.startswith("__")  # metadata of the package
    )
    try:
        yield from group(listed)
    except ValueError as error:
        problem = SHARD.at(str(shard), got=str(error)[:200], expected="each member once")
        raise UserError(problem) from error
