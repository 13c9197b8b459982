"""What a write waits for: the files and folders whose bytes and names are on the disk, between the points of it.

In tests `os.fsync` waits for nothing (`tests/conftest.py`), so only these records show that it is called.
"""

from __future__ import annotations

import os
from pathlib import Path
from types import ModuleType

import pytest

from lmmkit.runs import files


def record_waits(monkeypatch: pytest.MonkeyPatch, module: ModuleType) -> list[str | Path]:
    """Returns a list that grows: the names of the points of `module`, and the paths that `os.fsync` is called for."""
    events: list[str | Path] = []
    real = os.fsync

    def wait(handle: int) -> None:
        events.append(Path(os.readlink(f"/proc/self/fd/{handle}")))
        real(handle)

    monkeypatch.setattr(os, "fsync", wait)
    monkeypatch.setattr(module, "fsync", files.fsync)
    monkeypatch.setattr(module, "io_point", events.append)
    return events
