"""Checks the image paths of a records file: they must name files below its image folder."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path

from lmmkit.errors import UserError
from lmmkit.errors.data import RECORDS_IMAGES

_URL = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*:")  # also a Windows drive
_NETWORK = re.compile(r"(?:https?|ftp|s3|gs):", re.IGNORECASE)
_DATA = re.compile(r"data:", re.IGNORECASE)
_CONTROL = re.compile(r"[\x00-\x1f\x7f]")
_PLAIN = re.compile(r"(?:[A-Za-z0-9_-][A-Za-z0-9_.-]*/)*[A-Za-z0-9_-][A-Za-z0-9_.-]*")


def is_plain(path: str) -> bool:
    """Returns whether the path has a simple, good form. If not, `path_fault` decides."""
    return len(path) <= 255 and _PLAIN.fullmatch(path) is not None


def path_fault(path: str) -> str | None:
    """Returns what is wrong if the text `path` is not a relative path to a file below a folder."""
    reason = _spelling(path)
    return None if reason is None else describe_path(path, reason)


def describe_path(path: str, reason: str) -> str:
    """Returns a bad path and the reason, for a message."""
    return f"path {path[:80]!a}, {reason}"


@dataclass(frozen=True)
class FolderListing:
    """Holds the names of the regular files and of the links in a folder of images. `inside`: with links
    resolved, the folder is inside the root."""

    inside: bool
    files: frozenset[str] = frozenset()
    links: frozenset[str] = frozenset()


@dataclass(frozen=True, kw_only=True)
class ImageRoot:
    """Describes the image folder: `path` is absolute, `real` has its links resolved.

    Listing a folder is one call for many images. Resolving each path would take minutes on a big
    data set.
    """

    path: str
    real: str

    @classmethod
    def open(cls, folder: Path) -> ImageRoot:
        """Returns the root for `folder`. Raises `UserError` if it is not a folder."""
        path = os.path.abspath(folder)
        if not os.path.isdir(path):
            got = "no folder" if os.path.lexists(path) else "nothing there"
            raise UserError(RECORDS_IMAGES.at(path, got=got))
        return cls(path=path, real=os.path.realpath(path))

    @classmethod
    def none(cls) -> ImageRoot:
        """Returns the root of a source whose records contain all images: it has no path."""
        return cls(path="", real="")

    def list(self, folder: str) -> FolderListing:
        """Lists a folder below the root, given by its relative path."""
        here = os.path.join(self.path, folder)
        if not self._below(os.path.realpath(here)):
            return FolderListing(False)
        files, links = [], []
        try:
            with os.scandir(here) as entries:
                for entry in entries:
                    if entry.is_symlink():
                        links.append(entry.name)
                    elif entry.is_file():
                        files.append(entry.name)
        except OSError:
            pass  # no such folder: its images are missing
        return FolderListing(True, frozenset(files), frozenset(links))

    def leads_out(self, path: str) -> bool:
        """Returns whether a link leads the relative path out of the folder."""
        return not self._below(os.path.realpath(os.path.join(self.path, path)))

    def _below(self, real: str) -> bool:
        return real == self.real or real.startswith(self.real.rstrip("/") + "/")


def _spelling(path: str) -> str | None:
    """Returns what is wrong with the path as text; None if it is good."""
    if not path:
        return "which is empty"
    if _CONTROL.search(path):
        return "which contains a control character"
    if "\\" in path:
        return "which contains a backslash"
    if path.startswith("/"):
        return "which is absolute"
    if _NETWORK.match(path):
        return "which is a URL: nothing is loaded from the network"
    if _DATA.match(path):
        return "which is a `data:` address: the kind `messages` reads it"
    if _URL.match(path):
        return "which is a URL or a drive"
    parts = path.split("/")
    if ".." in parts:
        return "which goes up"
    if parts[-1] in ("", "."):
        return "which names a folder"
    if len(path) > 1024 or max(map(len, parts)) > 255:
        return "which is too long"
    return None
