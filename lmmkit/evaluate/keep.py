"""Where the answers of a task are kept, and the processes that share its questions."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol


class Sharing(Protocol):
    """Describes this process among those that share the questions, as `Ranks` does."""

    @property
    def world(self) -> int: ...
    @property
    def rank(self) -> int: ...
    def gather(self, value: Any) -> list[Any]: ...


@dataclass(frozen=True)
class OneProcess:
    """Is the only process."""

    world: int = 1
    rank: int = 0

    def gather(self, value: Any) -> list[Any]:
        """Returns the value."""
        return [value]


@dataclass(frozen=True, kw_only=True)
class Keep:
    """Holds where the answers of a task are kept. `model`: names the weights, as `model_facts` does. `alone`: how many
    questions are asked again, each alone, to compare their answers."""

    folder: Path
    model: Mapping[str, Any]
    ranks: Sharing = field(default_factory=OneProcess)
    alone: int = 0
