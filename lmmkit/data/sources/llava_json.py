"""Reads JSON or JSONL files, of kind `llava` or `messages`, through an index. A record is parsed when it is read."""

from __future__ import annotations

import array
import os
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from operator import itemgetter
from pathlib import Path

import numpy as np

from lmmkit.api.sample import Image
from lmmkit.data.image_files.data_addresses import MARK, address_places, is_address
from lmmkit.data.sources.image_paths import ImageRoot, describe_path, is_plain, path_fault
from lmmkit.data.sources.index_cache import Index
from lmmkit.data.sources.indexed_records import IndexBuilder, IndexedRecords, Indexing, OpenFiles, as_table
from lmmkit.data.sources.json_records import RawRecord, read_records
from lmmkit.data.sources.json_stream import Window
from lmmkit.data.sources.messages_records import as_llava, without_files
from lmmkit.errors import Problem, UserError, raise_all
from lmmkit.progress import counted, working
from lmmkit.runs.files import file_crc32

_IMAGE = np.dtype([("record", "<u8"), ("start", "<u8"), ("folder", "<u4")])


@dataclass(frozen=True, kw_only=True, eq=False)
class JsonRecords(IndexedRecords):
    """Reads the good records of files, by number. Their images are below `root`, or `data:` addresses in the records.
    `columns`: of a source of kind `messages`, the names of its columns."""

    root: ImageRoot
    columns: Mapping[str, str] | None = None

    def record(self, i: int) -> RawRecord:
        """Reads good record i, in LLaVA's form. Raises `UserError` if its file changed since it was indexed."""
        return _in_llava_s_form(super().record(i), self.columns, folder=bool(self.root.path))

    def images(self, i: int, paths: tuple[str, ...]) -> tuple[Image, ...]:
        """Returns the images of record i."""
        places = self._places(i) if len(set(filter(MARK.fullmatch, paths))) > 1 else {}
        return tuple(self._image(i, path, places) for path in paths)

    @property
    def contains_images(self) -> bool:
        """Returns whether records contain images."""
        return self.index.meta["inside"] > 0

    @property
    def image_folder(self) -> str:
        """Returns the folder of the images."""
        return self.root.path

    def names(self, i: int, paths: tuple[str, ...]) -> tuple[str, ...]:
        """Returns the paths of the images below the folder; an image that the record contains has none."""
        return tuple("" if MARK.fullmatch(path) else path for path in paths)

    def all_images(self) -> Iterator[tuple[int, Image]]:
        """Yields each image once, with its first record."""
        for i, names in groupby(self._names(), key=itemgetter(0)):
            paths = tuple(name for _, name in names if MARK.fullmatch(name) or _good(name))
            yield from ((i, image) for image in self.images(i, paths))

    def image_files(self) -> Iterator[tuple[int, Image]]:
        """Yields each image file that records name, with its first record."""
        for i, path in self._paths():
            yield i, Image(self._full(path))

    def missing(self) -> list[tuple[int, str, str]]:
        """Returns (record, absolute path, description) of each image file that is missing or not a regular file."""
        found = []
        for folder, listing in self._listings("looking for image files"):
            for i, path in self._paths(folder):
                name, full = path.rpartition("/")[2], self._full(path)
                if name in listing.files or (name in listing.links and os.path.isfile(full)):
                    continue
                found.append((i, full, f"no {'regular ' * os.path.lexists(full)}file {full}"))
        return sorted(found)

    def paths_outside(self) -> list[tuple[str, str]]:
        """Returns (absolute path, description) of each image that a link takes out of the root."""
        found = []
        for folder, listing in self._listings("looking for links"):
            for i, path in self._paths(folder) if listing.links or not listing.inside else ():
                name = path.rpartition("/")[2]
                if not listing.inside or (name in listing.links and self.root.leads_out(path)):
                    got = describe_path(path, "which a link leads out of the folder")
                    found.append((i, self._full(path), got))
        return [(path, got) for _, path, got in sorted(found)]

    def identity(self) -> dict[str, object]:
        """Returns what distinguishes this data from other data: file content, image names and sizes."""
        return {"records": ", ".join(self.contents()), "images": self.names_and_sizes()}

    def contents(self) -> list[str]:
        """Returns the size and the checksum of each file of the source."""
        return [f"{path.stat().st_size} bytes, crc32 {file_crc32(path):08x}" for path in self.files.paths]

    def names_and_sizes(self) -> str:
        """Returns a checksum of the names and sizes of the image files."""
        crc = total = count = 0
        images = len(self.index.arrays["images"])
        for _, image in counted(f"{self.path.name}: sizes of images", self.image_files(), images):
            try:
                size = os.stat(image.path).st_size
            except OSError:
                size = -1  # a source may skip missing images
            crc = zlib.crc32(f"{image.path.removeprefix(self.root.path)} {size}\n".encode(), crc)
            total, count = total + max(size, 0), count + 1
        return f"{count} files, {total} bytes, crc32 {crc:08x}"

    def _places(self, i: int) -> Mapping[str, tuple[int, int]]:
        """Returns where the addresses in record i are in its file, by hash. So each of several images is read without
        the others."""
        at = self.index.arrays["records"][i]
        begin = int(at["offset"])
        text, _ = self.files.read(int(at["file"]), begin, int(at["length"]))
        return {digest: (begin + start, size) for digest, (start, size) in address_places(text).items()}

    def _image(self, i: int, name: str, places: Mapping[str, tuple[int, int]]) -> Image:
        if (mark := MARK.fullmatch(name)) is None:
            return Image(self._full(name))
        at = self.index.arrays["records"][i]
        place = places.get(mark[2], (int(at["offset"]), int(at["length"])))
        return Image(str(self.files.paths[int(at["file"])]), part=place, address=mark[2])

    def _full(self, path: str) -> str:
        return os.path.join(self.root.path, path)

    def _listings(self, title: str):
        """Yields each folder of images with its files, and shows how many of the images are done."""
        folders, images = self.index.meta["folders"], self.index.arrays["images"]["folder"]
        done = np.cumsum(np.bincount(images, minlength=len(folders)))
        with working(f"{self.path.name}: {title}", len(images)) as move:
            for number, folder in enumerate(folders):
                yield number, self.root.list(folder)
                move(int(done[number]))

    def _paths(self, folder: int | None = None) -> Iterator[tuple[int, str]]:
        """Yields (first record, relative path) of each image file in record order, of all folders or of one."""
        return ((i, name) for i, name in self._names(folder) if _good(name))

    def _names(self, folder: int | None = None) -> Iterator[tuple[int, str]]:
        """Yields (first record, relative path or mark) of each image in record order, of all folders or of one."""
        images, names = self.index.arrays["images"], self.index.arrays["names"]
        ends = np.append(images["start"][1:], len(names)).astype(np.uint64)
        chosen = range(len(images)) if folder is None else np.flatnonzero(images["folder"] == folder)
        for j in chosen:
            yield int(images["record"][j]), names[int(images["start"][j]) : int(ends[j])].tobytes().decode()


def _good(path: str) -> bool:
    return is_plain(path) or path_fault(path) is None


def open_json(path: Path, files: Sequence[Path], root: ImageRoot, indexing: Indexing) -> JsonRecords:
    """Returns the files that `path` names with their index. Without a path of the root, no record may name a file.

    Raises `UserError` for a bad records file.
    """
    folder = bool(root.path)
    kind = "json" if folder else "json without images"
    index = indexing.open(kind, path, files, lambda: _index(files, indexing, folder=folder))
    return JsonRecords(path=path, files=OpenFiles(files), index=index, root=root, columns=indexing.columns)


def _in_llava_s_form(raw: RawRecord, columns: Mapping[str, str] | None, *, folder: bool) -> RawRecord:
    """Returns a record in LLaVA's form. `folder`: the source has a folder of images."""
    if columns is not None:
        raw = as_llava(raw, columns)
    return raw if folder else without_files(raw)


def _index(files: Sequence[Path], indexing: Indexing, *, folder: bool) -> Index:
    """Makes one pass over the files. A record has its number in all of them."""
    builder, images, done = IndexBuilder(files, indexing), ImageNames(), 0

    def read(file: int) -> int:
        before = builder.counts["records"]
        with Window(files[file], lambda size: indexing.progress(done + size)) as window:
            for raw in read_records(window):
                raw = _in_llava_s_form(raw, indexing.columns, folder=folder)
                if (size := builder.add(raw._replace(index=before + raw.index), file)) is not None:
                    images.add(size.images, len(builder) - 1)
            return window.size

    problems = list[Problem]()
    for file in range(len(files)):
        try:
            done += read(file)
        except UserError as error:
            problems += error.problems
    raise_all(problems)
    return builder.index(images.meta(), images.arrays())


class ImageNames:
    """Collects the image paths of a file, each once. `names` contains all of them, one after the other."""

    def __init__(self) -> None:
        self.known: set[str] = set()
        self.names = bytearray()
        self.columns = array.array("Q"), array.array("Q"), array.array("I")
        self.folders: dict[str, int] = {}

    def add(self, paths: tuple[str, ...], record: int) -> None:
        """Adds the paths that appear for the first time in `record`."""
        for path in paths:
            if path in self.known:
                continue
            self.known.add(path)
            folder = self.folders.setdefault(path.rpartition("/")[0], len(self.folders))
            for column, value in zip(self.columns, (record, len(self.names), folder), strict=True):
                column.append(value)
            self.names += path.encode()

    def meta(self) -> dict[str, object]:
        """Returns the counts of images, of those that records contain, and the folders."""
        inside = sum(map(is_address, self.known))  # no path begins as a mark does
        return {"images": len(self.known), "inside": inside, "folders": list(self.folders)}

    def arrays(self) -> dict[str, np.ndarray]:
        """Returns the arrays that an index has of them."""
        return {
            "images": as_table(_IMAGE, self.columns),
            "names": np.frombuffer(bytes(self.names), np.uint8),
        }
