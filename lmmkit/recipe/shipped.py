"""The recipes that come with the package."""

from __future__ import annotations

from pathlib import Path


def folder() -> Path:
    """Where they lie: in the installed package, or beside it in a checkout."""
    package = Path(__file__).resolve().parent.parent
    shipped = package / "shipped"
    return shipped if shipped.is_dir() else package.parent / "recipes"


def shipped() -> dict[str, Path]:
    """Recipe files by name without ending ("ablations/start")."""
    return {str(p.relative_to(folder()).with_suffix("")): p for p in sorted(folder().rglob("*.yaml"))}


def find_recipe(path: Path) -> Path:
    """A recipe file as given, or the shipped recipe of that name; a folder of that name (the quickstart
    leaves one) is no recipe."""
    known = shipped()
    name = str(path).removeprefix("recipes/").removesuffix(".yaml")
    return known[name] if not path.is_file() and name in known else path
