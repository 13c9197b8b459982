"""Scenes of a test's own: tests of several ranks add files to them."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest


@pytest.fixture
def scenes(scenes: Path, tmp_path: Path) -> Path:
    """Copies the shared scenes."""
    return Path(shutil.copytree(scenes, tmp_path / "scenes"))
