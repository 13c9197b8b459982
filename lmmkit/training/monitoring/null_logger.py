"""The logger of a rank that logs nothing."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from lmmkit.training.monitoring.board import BoardImage


class NullLogger:
    """Replaces metrics, board and progress on a rank that logs nothing."""

    def __enter__(self) -> NullLogger:
        return self

    def __exit__(self, *error: object) -> None:
        pass

    def write(self, record: Mapping[str, Any]) -> None:
        """Writes nothing, like all methods of this class."""

    def truncate(self, step: int) -> None: ...

    def scalars(self, step: int, values: Mapping[str, float | None]) -> None: ...

    def images(self, step: int, images: Mapping[str, BoardImage]) -> None: ...

    def texts(self, step: int, texts: Mapping[str, str]) -> None: ...

    def update(self, done: int, *, tokens: int, loss: float | None) -> None: ...

    def notify(self, text: str) -> None: ...
