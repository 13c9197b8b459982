"""Writes records and their images as WebDataset shards: `KEY.json` and `KEY.jpg`, or `KEY.0.jpg`, `KEY.1.jpg`."""

from __future__ import annotations

import io
import tarfile
from pathlib import Path

from lmmkit.data.convert.image_copies import SUFFIXES
from lmmkit.data.convert.json_writer import as_json
from lmmkit.data.convert.rows import Row, llava_value
from lmmkit.data.image_files.image_file import read_bytes

RECORDS = 1000  # of one shard
BYTES = 256 * 2**20


class ShardWriter:
    """Writes `000000.tar` and so on into a folder."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.shards, self.records = folder, 0, 0
        self._tar = self._open()

    @property
    def name(self) -> str:
        """Returns the pattern of the shards."""
        return "000000.tar" if self.shards == 1 else f"{{000000..{self.shards - 1:06d}}}.tar"

    def add(self, row: Row, lost: list[str]) -> int:
        """Writes a record. Returns the number of its images."""
        images = [read_bytes(image) for image in row.images]
        if self.records >= RECORDS or self._tar.offset >= BYTES:
            self._tar.close()
            self._tar, self.records = self._open(), 0
        self.records += 1
        self._member(f"{row.number:09d}.json", as_json(llava_value(row, (), lost)).encode())
        lost += ["the name of an image"] * any(row.names)
        for k, (data, format) in enumerate(images):
            number = f".{k}" if len(images) > 1 else ""
            self._member(f"{row.number:09d}{number}{SUFFIXES[format]}", data)
        return len(images)

    def close(self) -> None:
        """Ends the last shard."""
        self._tar.close()

    def _open(self) -> tarfile.TarFile:
        self.shards += 1
        return tarfile.open(self.folder / f"{self.shards - 1:06d}.tar", "w", format=tarfile.USTAR_FORMAT)

    def _member(self, name: str, data: bytes) -> None:
        info = tarfile.TarInfo(name)
        info.size = len(data)
        self._tar.addfile(info, io.BytesIO(data))
