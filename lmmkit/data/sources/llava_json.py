"""Reads a JSON or JSONL file, of kind `llava` or `messages`, through an index. A record is parsed when it is read."""

from __future__ import annotations

import array
import os
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from lmmkit.api.sample import Image
from lmmkit.data.sources.image_paths import ImageRoot, describe_path, is_plain, path_fault
from lmmkit.data.sources.index_cache import Index
from lmmkit.data.sources.indexed_records import IndexBuilder, IndexedRecords, Indexing, OpenFiles, as_table
from lmmkit.data.sources.json_records import RawRecord, read_records
from lmmkit.data.sources.json_stream import Window, open_regular
from lmmkit.data.sources.messages_records import as_llava
from lmmkit.progress import counted, working
from lmmkit.runs.files import file_crc32

_IMAGE = np.dtype([("record", "<u8"), ("start", "<u8"), ("folder", "<u4")])


@dataclass(frozen=True, kw_only=True, eq=False)
class JsonRecords(IndexedRecords):
    """Reads the good records of a file, by number. Their images are below `root`. `columns`: of a source of kind
    `messages`, the names of its columns."""

    root: ImageRoot
    columns: Mapping[str, str] | None = None

    def record(self, i: int) -> RawRecord:
        """Reads good record i, in LLaVA's form. Raises `UserError` if its file changed since it was indexed."""
        raw = super().record(i)
        return raw if self.columns is None else as_llava(raw, self.columns)

    def images(self, i: int, paths: tuple[str, ...]) -> tuple[Image, ...]:
        """Returns the images of record i."""
        return tuple(Image(self._full(path)) for path in paths)

    @property
    def image_folder(self) -> str:
        """Returns the folder of the images."""
        return self.root.path

    def names(self, i: int, paths: tuple[str, ...]) -> tuple[str, ...]:
        """Returns the paths of the images below the folder."""
        return paths

    def all_images(self) -> Iterator[tuple[int, Image]]:
        """Yields each image once, with its first record."""
        return self.image_files()

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
        """Yields (first record, relative path) of each image in record order, of all folders or of one."""
        images, names = self.index.arrays["images"], self.index.arrays["names"]
        ends = np.append(images["start"][1:], len(names)).astype(np.uint64)
        chosen = range(len(images)) if folder is None else np.flatnonzero(images["folder"] == folder)
        for j in chosen:
            path = names[int(images["start"][j]) : int(ends[j])].tobytes().decode()
            if is_plain(path) or path_fault(path) is None:
                yield int(images["record"][j]), path


def open_json(path: Path, images: Path, indexing: Indexing) -> JsonRecords:
    """Returns the file with its index. Raises `UserError` for a bad records file or image folder."""
    root = ImageRoot.open(images)
    with open_regular(path):  # raises a clear error if it cannot be read
        pass
    index = indexing.open("json", path, [path], lambda: _index(path, indexing))
    files = OpenFiles([path])
    return JsonRecords(path=path, files=files, index=index, root=root, columns=indexing.columns)


def _index(path: Path, indexing: Indexing) -> Index:
    """Makes one pass over the file."""
    builder, images = IndexBuilder([path], indexing), ImageNames()
    with Window(path, indexing.progress) as window:
        for raw in read_records(window):
            raw = raw if indexing.columns is None else as_llava(raw, indexing.columns)
            if (size := builder.add(raw)) is not None:
                images.add(size.images, len(builder) - 1)
    meta = {"images": len(images.known), "folders": list(images.folders)}
    return builder.index(meta, images.arrays())


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

    def arrays(self) -> dict[str, np.ndarray]:
        """Returns the arrays that an index has of them."""
        return {
            "images": as_table(_IMAGE, self.columns),
            "names": np.frombuffer(bytes(self.names), np.uint8),
        }
