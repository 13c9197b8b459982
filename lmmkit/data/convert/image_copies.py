"""Copies the images of records: into files with names that do not collide, or as bytes."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from pathlib import Path

from lmmkit.api.sample import Image
from lmmkit.data.image_files.image_file import read_bytes
from lmmkit.data.sources.image_paths import is_plain

SUFFIXES = {"JPEG": ".jpg", "PNG": ".png", "WEBP": ".webp", "GIF": ".gif", "BMP": ".bmp"}
_BELOW = "images"
_LIKE = {".jpg": (".jpeg",)}


@dataclass
class ImageFolder:
    """Writes images below `images` of a folder, each content once. An image keeps its name if it is plain and free,
    or else has the hash of its bytes as its name."""

    folder: Path
    names: dict[bytes, str] = field(default_factory=dict)  # by the hash of the bytes
    files: set[str] = field(default_factory=set)
    folders: set[str] = field(default_factory=set)

    def add(self, image: Image, name: str) -> str:
        """Returns the path of the image's copy, which begins with `images`. Raises `UserError` for a file that is no
        image."""
        data, format = read_bytes(image)
        digest = hashlib.sha256(data).digest()
        if digest not in self.names:
            self.names[digest] = self._free(name, digest.hex()[:32], SUFFIXES[format])
            path = self.folder / self.names[digest]
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(data)
        return self.names[digest]

    def _free(self, name: str, digest: str, suffix: str) -> str:
        """Returns the name, or one of the digest, as a new file. Upper and lower case are the same."""
        name = name if name.startswith(f"{_BELOW}/") else f"{_BELOW}/{name}"
        usable = is_plain(name) and Path(name).suffix.lower() in (suffix, *_LIKE.get(suffix, ()))
        above = _above(name)
        if (
            not usable
            or name.lower() in self.files
            or name.lower() in self.folders
            or not self.files.isdisjoint(above)
        ):
            name = f"{_BELOW}/{digest[:2]}/{digest}{suffix}"
            above = _above(name)
        self.files.add(name.lower())
        self.folders.update(above)
        return name


def _above(name: str) -> list[str]:
    """Returns the folders above a file."""
    parts = name.lower().split("/")
    return ["/".join(parts[:n]) for n in range(1, len(parts))]
