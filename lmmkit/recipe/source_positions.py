"""Where each key of a recipe was written, so that a complaint made late can still name a line."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Places:
    """`at` maps a dotted key ("model.text.width", list items by number) to "file:line:col".

    A key set on the command line stands at "--set KEY=VALUE". A recipe built in Python has no
    places; its keys alone are named then.
    """

    at: Mapping[str, str] = field(default_factory=dict)

    def where(self, key: str) -> str:
        """'file:line:col KEY'; a key that was not written stands where its parent stands."""
        parent = key
        while parent and parent not in self.at:
            parent = parent.rpartition(".")[0]
        place = self.at.get(parent, "")
        if place.startswith("--set "):
            return place if parent == key else f"{place} ({key})"
        return f"{place} {key}".strip() or "recipe"
