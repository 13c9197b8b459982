"""Files of what does not learn: two checkpoints write them, later ones link to those.

A checkpoint shares no file with the one before it but with the one before that, so that of two neighbours
damage to one leaves the other whole.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from lmmkit.training.checkpoint.tensor_files import HeldTensors, Mark, TensorSlice


class Written(NamedTuple):
    """A file: where it lies, what it holds as it was then, its size and crc32."""

    path: Path
    marks: Mapping[str, Mark | None]
    said: list[int]


@dataclass
class Lasting:
    """What this rank has written of parts that do not learn, in this checkpoint and the two before."""

    staged: dict[str, Written] = field(default_factory=dict)
    before: deque[dict[str, Written]] = field(default_factory=lambda: deque(maxlen=2))

    def earlier(self, name: str, parts: Mapping[str, TensorSlice]) -> Written | None:
        """The file of this name of the checkpoint before the last, if it holds just this."""
        found = self._two_ago.get(name)
        if found is None or found.marks != _marks(parts) or not found.path.is_file():
            return None
        return found

    def spared(self, held: HeldTensors) -> int:
        """Bytes that need no writing now."""
        marks = {key: mark for written in self._two_ago.values() for key, mark in written.marks.items()}
        same = (part for key, part in held.lasting.items() if marks.get(key) == part.mark)
        return sum(part.tensor.nbytes for part in same)

    def stage(self, path: Path, parts: Mapping[str, TensorSlice], said: list[int]) -> None:
        """A file of the checkpoint that is being written."""
        self.staged[path.name] = Written(path, _marks(parts), said)

    def published(self, folder: Path) -> None:
        """What was staged lies in `folder` now."""
        self.before.append({name: w._replace(path=folder / name) for name, w in self.staged.items()})

    @property
    def _two_ago(self) -> dict[str, Written]:
        return self.before[0] if len(self.before) == 2 else {}


def _marks(parts: Mapping[str, TensorSlice]) -> dict[str, Mark | None]:
    return {key: part.mark for key, part in parts.items()}
