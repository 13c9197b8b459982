"""Reads WebDataset shards as a source: tar files in which `KEY.json` and `KEY.jpg` are one record.

A record with several images has `KEY.0.jpg`, `KEY.1.jpg`, in the order of its markers. The `webdataset`
package's rule pairs the members. An index of their offsets gives random access to every record, so the
order is a function of position, as for JSON. Images are read from the shards; nothing is unpacked.
"""

from __future__ import annotations

import array
import itertools
import math
import os
import re
import zlib
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from lmmkit.api.sample import Image
from lmmkit.data.sources.index_cache import Index
from lmmkit.data.sources.indexed_records import IndexBuilder, IndexedRecords, Indexing, OpenFiles, as_table
from lmmkit.data.sources.json_records import RawRecord, parse_record
from lmmkit.data.sources.json_stream import MAX_RECORD
from lmmkit.data.sources.tables.patterns import files_of, folder_and_rest, require_distinct
from lmmkit.data.sources.tar_members import Member, members
from lmmkit.errors import LmmkitError, MachineError, Problem, UserError
from lmmkit.errors.data import LONG, NO_WEBDATASET, RECORDS_FILE, RECORDS_SHARD

IMAGE_KINDS = ("jpg", "jpeg", "png", "webp", "gif", "bmp")
MAX_SHARDS = 100_000
_MEMBER = np.dtype([("offset", "<u8"), ("size", "<u8")])
_RANGE = re.compile(r"\{(-?[0-9]{1,18})\.\.(-?[0-9]{1,18})")


@dataclass(frozen=True, kw_only=True, eq=False)
class ShardRecords(IndexedRecords):
    """Reads the good records of the shards that the pattern `path` names, by number."""

    def record(self, i: int) -> RawRecord:
        """Reads good record i from its shard. Raises `UserError` if the shard changed since it was indexed."""
        return _with_images(super().record(i), len(self._members(i)))

    @property
    def contains_images(self) -> bool:
        """Returns whether there are images, which shards contain."""
        return len(self.index.arrays["members"]) > 0

    def images(self, i: int, paths: tuple[str, ...]) -> tuple[Image, ...]:
        """Returns the images of record i."""
        shard, _, _ = self.place(i)
        return tuple(Image(shard, part=(int(at["offset"]), int(at["size"]))) for at in self._members(i))

    def all_images(self) -> Iterator[tuple[int, Image]]:
        """Yields every image, with its record."""
        for i in range(len(self)):
            for image in self.images(i, ()):
                yield i, image

    def identity(self) -> dict[str, object]:
        """Returns what distinguishes this data from other data: sizes of the shards, and checksums of their
        JSON and of the index of their members."""
        sizes, arrays = [path.stat().st_size for path in self.files.paths], self.index.arrays
        crc = 0
        for name in ("records", "members", "ends"):
            crc = zlib.crc32(arrays[name].tobytes(), crc)
        return {
            "records": f"{len(sizes)} shards, {sum(sizes)} bytes, crc32 {self.index.meta['crc32']:08x}",
            "images": f"{len(arrays['members'])} members, crc32 {crc:08x}",
        }

    def _members(self, i: int) -> np.ndarray:
        """Returns where the images of record i are in its shard."""
        ends = self.index.arrays["ends"]
        return self.index.arrays["members"][int(ends[i - 1]) if i else 0 : int(ends[i])]


def open_shards(pattern: Path, indexing: Indexing) -> ShardRecords:
    """Returns the shards with their index.

    Raises `UserError` for a pattern that matches no file and for a file that is not an archive, and
    `MachineError` if the package is missing.
    """
    shards = _named(pattern)
    index = indexing.open("shards", pattern, shards, lambda: _Pass(shards, indexing).index())
    return ShardRecords(path=pattern, files=OpenFiles(shards), index=index)


def shards_size(pattern: Path) -> int:
    """Returns the bytes of all shards that can be read; 0 for a pattern that `open_shards` refuses."""
    with suppress(LmmkitError):
        return sum(path.stat().st_size for path in _named(pattern) if os.path.isfile(path))
    return 0


def _named(pattern: Path) -> list[Path]:
    """Returns the files of a pattern with braces ({000..099}), wildcards, or neither."""
    if "\0" in str(pattern):
        raise _refused(pattern, "a NUL in it", "a pattern of shards")
    braces = _package("braceexpand").braceexpand
    if os.path.isfile(pattern):
        return [pattern]
    above, rest = folder_and_rest(pattern)
    spans = (abs(int(a) - int(b)) + 1 for a, b in _RANGE.findall(rest))
    many = math.prod(spans) > MAX_SHARDS  # the package makes a list of each range
    try:
        names = [] if many else list(itertools.islice(braces(rest), MAX_SHARDS + 1))
    except ValueError as error:
        raise _refused(pattern, str(error), "a pattern of shards") from error
    if many or len(names) > MAX_SHARDS:
        raise _refused(pattern, f"more than {MAX_SHARDS} names", f"at most {MAX_SHARDS}")
    found = [files_of(above / name) for name in names]
    if absent := [name for name, files in zip(names, found, strict=True) if not files]:
        got = f"no such file as {absent[0]}" + f", and for {len(absent) - 1} more names" * (len(absent) > 1)
        raise _refused(pattern, got, "shards for each of its names")
    shards = [shard for files in found for shard in files]
    require_distinct(pattern, shards)
    return shards


def _package(name: str):
    """Imports a module of `pip install "lmmkit[webdataset]"` only when needed, because this takes a second."""
    import importlib

    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise MachineError(NO_WEBDATASET.at("kind: webdataset", got=f"no package {name}")) from error


def _refused(path: Path, got: str, expected: str) -> UserError:
    return UserError(RECORDS_FILE.at(str(path), got=got, expected=expected))


def _with_images(raw: RawRecord, count: int) -> RawRecord:
    """Returns the record with one name for each image member of its key, in place of the names in it."""
    if not isinstance(raw.value, dict):
        return raw
    named = {key: value for key, value in raw.value.items() if key != "images"}
    return raw._replace(value={**named, "image": [f"image-{i}" for i in range(count)]})


class _Pass:
    """Makes one pass over the headers of all shards, and over the JSON in them."""

    def __init__(self, shards: Sequence[Path], indexing: Indexing) -> None:
        self.shards, self.progress = shards, indexing.progress
        self.builder = IndexBuilder(shards, indexing)
        self.members = array.array("Q"), array.array("Q")
        self.ends = array.array("Q")
        self.crc = 0

    def index(self) -> Index:
        """Returns everything that the pass finds. Raises `UserError` with all broken shards."""
        done, problems = 0, list[Problem]()
        for number, shard in enumerate(self.shards):
            try:
                for sample in _samples(shard):
                    self.add(number, sample)
            except UserError as error:
                problems += error.problems
            else:
                self.progress(done := done + shard.stat().st_size)
        if problems:
            raise UserError(problems)
        meta = {"crc32": self.crc, "images": len(self.members[0])}
        ends = np.frombuffer(self.ends, np.uint64)
        return self.builder.index(meta, {"members": as_table(_MEMBER, self.members), "ends": ends})

    def add(self, number: int, sample: dict) -> None:
        """Adds the record of one key of shard `number`."""
        name = sample["__key__"]
        member = _json_member(name, sample.get("json"))
        raw = RawRecord(self.builder.counts["records"], 0)
        if isinstance(member, Problem):
            self.builder.refuse(raw, [("", member)], number, name)
            return
        kinds = _image_kinds(sample)
        images = [sample[kind] for kind in kinds]
        with open(self.shards[number], "rb") as file:
            data = os.pread(file.fileno(), member.size, member.offset)
        self.crc = zlib.crc32(data, self.crc)
        raw = _with_images(parse_record(data, raw.index, 0), len(images))
        others = (kind for kind in sample if kind not in (*kinds, "json") and not kind.startswith("__"))
        notes = tuple(f"KEY.{kind[:40]} is not read" for kind in others)
        raw = raw._replace(offset=member.offset, length=member.size, notes=notes)
        if self.builder.add(raw, number, name) is not None:
            for image in images:
                self.members[0].append(image.offset)
                self.members[1].append(image.size)
            self.ends.append(len(self.members[0]))


def _image_kinds(sample: dict) -> list[str]:
    """Returns the kinds of the images of a key in the order of their numbers; without numbers in that of the shard."""
    kinds = [kind for kind in sample if kind.rpartition(".")[2] in IMAGE_KINDS]
    numbers = {kind: kind.rpartition(".")[0] for kind in kinds}
    if all(re.fullmatch("[0-9]{1,9}", number) for number in numbers.values()):
        kinds.sort(key=lambda kind: int(numbers[kind]))
    return kinds


def _json_member(name: str, member: Member | None) -> Member | Problem:
    """Returns the JSON of a key, or what is wrong with it before it is read."""
    if member is None:
        return RECORDS_SHARD.at("", got=f"key {name[:80]!a} without JSON", expected="a member KEY.json")
    if member.size > MAX_RECORD:
        return LONG.at("", got=f"JSON of {member.size} bytes", most=f"{MAX_RECORD} bytes")
    return member


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
        problem = RECORDS_SHARD.at(str(shard), got=str(error)[:200], expected="each member once")
        raise UserError(problem) from error
