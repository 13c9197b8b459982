"""Positions of recipe keys in their file, so that problems found later can name a line."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Places:
    """Maps a dotted key ("model.text.width", list items by number) to "file:line:col", in `at`.

    The position of a key set on the command line is "--set KEY=VALUE". A recipe built in Python has no
    positions; problems then name only its keys.
    """

    at: Mapping[str, str] = field(default_factory=dict)

    def where(self, key: str) -> str:
        """Returns 'file:line:col KEY'. A key that is not in the file gets the position of its parent."""
        parent = key
        while parent and parent not in self.at:
            parent = parent.rpartition(".")[0]
        position = self.at.get(parent, "")
        if position.startswith("--set "):
            return position if parent == key else f"{position} ({key})"
        return f"{position} {key}".strip() or "recipe"


@dataclass(frozen=True)
class MovedPlaces(Places):
    """Gives the keys of section `old` the positions and names of section `new`."""

    old: str = ""
    new: str = ""

    def where(self, key: str) -> str:
        inside = key == self.old or key.startswith(f"{self.old}.")
        return super().where(self.new + key.removeprefix(self.old) if inside else key)
