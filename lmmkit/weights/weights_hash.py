"""Tells model folders apart without reading all of their weights."""

from __future__ import annotations

import hashlib
from pathlib import Path

_READ = 1 << 20  # bytes at each end of a file
_WEIGHTS = (".safetensors", ".bin")


def weight_files(folder: Path) -> list[Path]:
    """Returns the files of a model folder that contain weights."""
    return sorted(path for path in folder.glob("*") if path.suffix in _WEIGHTS and path.is_file())


def weights_hash(folder: Path) -> str:
    """Returns a hash of the names and sizes of a folder's weight files, and of their first and last MiB.

    Training changes all trained tensors, and with them the ends of the files. It is empty without such files.
    """
    files, digest = weight_files(folder), hashlib.sha256()
    for path in files:
        size = path.stat().st_size
        with path.open("rb") as file:
            start = file.read(_READ)
            file.seek(max(size - _READ, 0))
            digest.update(f"{path.name} {size} ".encode() + start + file.read(_READ))
    return digest.hexdigest()[:16] if files else ""
