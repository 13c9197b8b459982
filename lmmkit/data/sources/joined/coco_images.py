"""Finds images of COCO by name, in the folders and under the names that its releases of 2014 and 2017 give them.

An image has one number in all of them: `COCO_val2014_000000391895.jpg` is `000000391895.jpg` of 2017.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass

FOLDERS = ("", "train2014", "val2014", "train2017", "val2017")  # below the folder of images
_NUMBERED = re.compile(r"(?:COCO_[a-z]+[0-9]+_)?([0-9]{12}\.jpg)")


def spellings(name: str) -> tuple[str, ...]:
    """Returns the names that an image has in the releases, first the given one."""
    if (found := _NUMBERED.fullmatch(name)) is None:
        return (name,)
    plain = found[1]
    return tuple(dict.fromkeys((name, plain, f"COCO_train2014_{plain}", f"COCO_val2014_{plain}")))


@dataclass(frozen=True)
class CocoFolders:
    """Holds the names of the files in each of `FOLDERS`."""

    files: Mapping[str, frozenset[str]]

    @classmethod
    def list(cls, root: str) -> CocoFolders:
        """Lists the folders below `root` that are there."""
        found = {}
        for folder in FOLDERS:
            with suppress(OSError):
                found[folder] = frozenset(os.listdir(os.path.join(root, folder)))
        return cls(found)

    def place(self, name: object) -> int:
        """Returns the number of the place of an image, from which `path_at` returns its path; 0 if it is not there."""
        for k, spelled in enumerate(spellings(name) if isinstance(name, str) else ()):
            for n, folder in enumerate(FOLDERS):
                if spelled in self.files.get(folder, ()):
                    return k * len(FOLDERS) + n
        return 0


def path_at(name: object, place: int) -> object:
    """Returns the path of an image below the folder of images."""
    if not isinstance(name, str) or not place:
        return name
    spelled, folder = spellings(name)[place // len(FOLDERS)], FOLDERS[place % len(FOLDERS)]
    return f"{folder}/{spelled}" if folder else spelled


def changed_at(root: str) -> list[int]:
    """Returns when a file was added to or removed from each of the folders last; 0 for one that is not there."""
    found = []
    for folder in FOLDERS:
        try:
            found.append(os.stat(os.path.join(root, folder)).st_mtime_ns)
        except OSError:
            found.append(0)
    return found
