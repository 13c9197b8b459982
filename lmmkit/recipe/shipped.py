"""The recipes and grids that come with the package."""

from __future__ import annotations

from pathlib import Path

from lmmkit.runs.files import is_file

GRIDS = "ablations/"  # the folder of the grids that `lmmkit ablate` runs


def folder() -> Path:
    """Returns their folder: inside the installed package, or next to the package in a checkout."""
    package = Path(__file__).resolve().parent.parent
    shipped = package / "shipped"
    return shipped if shipped.is_dir() else package.parent / "recipes"


def shipped() -> dict[str, Path]:
    """Returns the recipe files by name without suffix ("zoo/focal")."""
    return {name: path for name, path in _files().items() if not name.startswith(GRIDS)}


def shipped_grids() -> dict[str, Path]:
    """Returns the files of grids by name without suffix ("ablations/weights")."""
    return {name: path for name, path in _files().items() if name.startswith(GRIDS)}


def _files() -> dict[str, Path]:
    return {str(p.relative_to(folder()).with_suffix("")): p for p in sorted(folder().rglob("*.yaml"))}


def find_recipe(path: Path) -> Path:
    """Returns `path` if it is a file, else the shipped recipe of that name. A folder of that name, which the
    quickstart creates, is not a recipe."""
    return _found(path, shipped())


def find_grid(path: Path) -> Path:
    """Returns `path` if it is a file, else the shipped grid of that name, with or without "ablations/"."""
    known = shipped_grids()
    return _found(path, known | {name.removeprefix(GRIDS): file for name, file in known.items()})


def _found(path: Path, known: dict[str, Path]) -> Path:
    name = str(path).removeprefix("recipes/").removesuffix(".yaml")
    return known[name] if not is_file(path) and name in known else path
