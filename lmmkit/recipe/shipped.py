"""The recipes that come with the package."""

from __future__ import annotations

from pathlib import Path


def folder() -> Path:
    """Returns their folder: inside the installed package, or next to the package in a checkout."""
    package = Path(__file__).resolve().parent.parent
    shipped = package / "shipped"
    return shipped if shipped.is_dir() else package.parent / "recipes"


def shipped() -> dict[str, Path]:
    """Returns the recipe files by name without suffix ("ablations/start")."""
    return {str(p.relative_to(folder()).with_suffix("")): p for p in sorted(folder().rglob("*.yaml"))}


def find_recipe(path: Path) -> Path:
    """Returns `path` if it is a file, else the shipped recipe of that name. A folder of that name, which the
    quickstart creates, is not a recipe."""
    known = shipped()
    name = str(path).removeprefix("recipes/").removesuffix(".yaml")
    return known[name] if not path.is_file() and name in known else path
