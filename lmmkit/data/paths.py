"""Which picture paths a records file may name: files below its image folder, nothing else."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass, field
from pathlib import Path

from lmmkit.errors import Problem, UserError

_MEND = "Write the path relative to `images`."
_URL = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*:")  # also a Windows drive
_CONTROL = re.compile(r"[\x00-\x1f\x7f]")


@dataclass(frozen=True, kw_only=True)
class ImageRoot:
    """The folder `path`, absolute; `real` is where it truly lies.

    A folder below it is looked into once, for where it leads and which of its files are links:
    this costs one listing a folder, where resolving each path would cost minutes on a big set.
    """

    path: str
    real: str
    _folders: dict[str, tuple[bool, frozenset[str]]] = field(default_factory=dict, repr=False)

    @classmethod
    def open(cls, folder: Path) -> ImageRoot:
        """Raises `UserError` if `folder` is none."""
        path = os.path.abspath(folder)
        if not os.path.isdir(path):
            got = "no folder" if os.path.lexists(path) else "nothing there"
            raise UserError(Problem("records/images", path, got, "a folder of pictures", "Mend `images`."))
        return cls(path=path, real=os.path.realpath(path))

    def fault(self, path: str) -> tuple[str, str, str] | None:
        """(got, want, mend) if `path` is no relative path to below the folder, links resolved."""
        reason = _spelling(path)
        if reason is None and not self._inside(path):
            reason = "which a link leads out of the folder"
        if reason is None:
            return None
        return f"path {path[:80]!a}, {reason}", f"a file below {self.path}", _MEND

    def _inside(self, path: str) -> bool:
        folder, _, name = path.rpartition("/")
        known = self._folders.get(folder)
        if known is None:
            known = self._folders[folder] = self._look(folder)
        inside, links = known
        if not inside or name not in links:
            return inside
        return self._below(os.path.realpath(os.path.join(self.path, path)))

    def _look(self, folder: str) -> tuple[bool, frozenset[str]]:
        here = os.path.join(self.path, folder)
        if not self._below(os.path.realpath(here)):
            return False, frozenset()
        try:
            with os.scandir(here) as entries:
                return True, frozenset(entry.name for entry in entries if entry.is_symlink())
        except OSError:
            return True, frozenset()  # not there: `missing_images` says so

    def _below(self, real: str) -> bool:
        return real == self.real or real.startswith(self.real.rstrip("/") + "/")


def _spelling(path: str) -> str | None:
    """What is wrong with the path as text."""
    if not path:
        return "which is empty"
    if _CONTROL.search(path):
        return "which holds a control character"
    if "\\" in path:
        return "which holds a backslash"
    if path.startswith("/"):
        return "which is absolute"
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
