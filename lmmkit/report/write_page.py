"""Writes the page of runs, or of a grid, to a file."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from lmmkit.errors import UserError
from lmmkit.errors.report import GRID_AND_RUNS, NOT_HTML
from lmmkit.report.grid_page import GRID, grid_page
from lmmkit.report.page import Page
from lmmkit.report.runs_page import runs_page
from lmmkit.runs.files import read_json, write_text_atomic

BEGINS = b"<!doctype html>"


@dataclass(frozen=True, kw_only=True)
class Written:
    """Describes a page that was written. `warnings`: what it marks."""

    path: Path
    size: int
    warnings: Sequence[str]


def write_page(paths: Sequence[Path], to: Path, *, on: str | None = None) -> Written:
    """Writes a page about runs, or about one grid, which may be its folder or its file.

    Raises `UserError` for a bad run or grid, and for a place with another file; `MachineError` if the file cannot be
    written.
    """
    require_place(to)
    grids = [path for path in paths if _is_grid(path)]
    if grids and (len(paths) > 1 or on is not None):
        got = f"a grid among {len(paths)} names" if len(paths) > 1 else f"a grid, and the task `{on}`"
        raise UserError(GRID_AND_RUNS.at(str(grids[0]), got=got))
    page: Page = grid_page(grids[0]) if grids else runs_page(paths, on=on)
    return place_page(page, to)


def _is_grid(path: Path) -> bool:
    """Returns whether a path is the file of a grid, under any name, or its folder."""
    if path.name == GRID or (path / GRID).is_file():
        return True
    if path.suffix != ".json" or not path.is_file():
        return False
    try:
        return {"grid", "arms"} <= read_json(path).keys()
    except UserError:
        return False


def require_place(to: Path) -> None:
    """Raises `UserError` unless a page may be written to `to`: a new file, or a page to replace."""
    if to.is_dir() or (to.exists() and not _is_page(to)):
        raise UserError(
            NOT_HTML.at(str(to), got="a folder" if to.is_dir() else "a file that is no HTML page")
        )


def place_page(page: Page, to: Path) -> Written:
    """Writes a page to a file, whole or not at all."""
    to.parent.mkdir(parents=True, exist_ok=True)
    write_text_atomic(to, page.text)
    return Written(path=to, size=to.stat().st_size, warnings=page.warnings)


def _is_page(path: Path) -> bool:
    if not path.is_file():
        return False
    with path.open("rb") as file:
        return file.read(len(BEGINS)).lower() == BEGINS
