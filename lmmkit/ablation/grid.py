"""Reads a grid file, and raises all its problems together."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter, ValidationError

from lmmkit.ablation.schema import Grid
from lmmkit.errors import Problem, UserError, did_you_mean
from lmmkit.errors.ablation import GIVEN_TWICE, MANY_VARIANTS, NO_RECIPE, ONE_SEED, SET_SEED
from lmmkit.errors.recipe import EMPTY, NAME, UNKNOWN_KEY
from lmmkit.errors.training import NOT_A_FOLDER
from lmmkit.recipe.error_messages import problems_of, tidy
from lmmkit.recipe.read import recipe_file_text
from lmmkit.recipe.shipped import GRIDS, find_grid, find_recipe, shipped, shipped_grids
from lmmkit.recipe.source_positions import Places
from lmmkit.recipe.yaml_tree import parse
from lmmkit.runs.files import is_file

BASE = "base"  # the name of the arm that all variants are compared with
MOST = 1000  # combinations of a product: more would be a typing error


@dataclass(frozen=True)
class GridFile:
    """Holds a grid, its file, where its keys are, and the problems that were found so far."""

    grid: Grid
    path: Path
    places: Places
    problems: tuple[Problem, ...] = ()

    @property
    def name(self) -> str:
        """Returns the name of the grid: that of its file."""
        return self.path.stem

    @property
    def argument(self) -> str:
        """Returns what `lmmkit ablate` is given for this grid: the name of a shipped one, or its whole path."""
        names = (name.removeprefix(GRIDS) for name, path in shipped_grids().items() if path == self.path)
        return next(names, str(self.path.resolve()))

    def recipe_path(self, name: str) -> Path:
        """Returns the file of a recipe: relative to the grid, else to the current folder, else a shipped one."""
        beside = self.path.parent / name
        return beside if is_file(beside) else find_recipe(Path(name))


def read_grid(path: Path, *, roots: Sequence[Path] = ()) -> GridFile:
    """Reads a grid file. `roots` replace its data folders.

    `read_arms` reports the problems together with those of the recipes. Raises `UserError` if the file is so wrong
    that there is no grid.
    """
    path = find_grid(path)
    tree = parse(recipe_file_text(path, [name.removeprefix(GRIDS) for name in shipped_grids()]), str(path))
    if tree.broken or not isinstance(tree.value, dict):
        raise UserError([*tree.problems, *([] if tree.broken else [EMPTY.at(str(path), got="no keys")])])
    if roots:
        tree.value["root"] = [str(root) for root in roots]
    places = Places(dict(tree.places))
    found: list[Problem] = []
    raw = tidy(tree.value, "", found)
    grid, wrong = _validated(raw)
    unknown = [problem.where for problem in wrong if problem.code == UNKNOWN_KEY.code]
    if grid is None and unknown:  # their problems must not hide those of the rest
        grid, _ = _validated(_without(raw, unknown))
    known = {problem.where for problem in found} | tree.silent
    found += [problem for problem in wrong if problem.where not in known]
    found += _rules(GridFile(grid, path, places)) if grid is not None else []
    placed = (replace(problem, where=places.where(problem.where)) for problem in dict.fromkeys(found))
    problems = (*tree.problems, *placed)
    if grid is None:
        raise UserError(problems)
    return GridFile(grid, path, places, problems)


def _validated(raw: Any) -> tuple[Grid | None, list[Problem]]:
    try:
        return TypeAdapter(Grid).validate_python(raw), []
    except ValidationError as error:
        return None, list(problems_of(error, raw, Grid))


def _without(raw: Any, keys: Sequence[str]) -> Any:
    """Returns a copy of nested sections without some of their keys, given as dotted keys."""

    def cut(value: Any, at: str) -> Any:
        if not isinstance(value, dict):
            return value
        names = {name: f"{at}.{name}" if at else name for name in value}
        return {name: cut(value[name], key) for name, key in names.items() if key not in keys}

    return cut(raw, "")


def _real(root: str) -> str:
    """Returns the place of a folder; a name that no folder can have unchanged."""
    return root if "\0" in root else os.path.realpath(root)


def _rules(file: GridFile) -> Iterator[Problem]:
    grid = file.grid
    lists: dict[str, tuple[Any, ...]] = {"seeds": grid.seeds, "root": grid.root, "equal": grid.equal}
    for key, items in lists.items():
        same = [_real(item) for item in items] if key == "root" else items
        for i, item in enumerate(items):
            if same[i] in same[:i]:
                first = items[same.index(same[i])]
                got = f"{item} twice" if first == item else f"{item}, which is {first}"
                yield GIVEN_TWICE.at(f"{key}.{i}", got=got)
    for i, root in enumerate(grid.root):
        if "\0" in root:
            yield NOT_A_FOLDER.at(f"root.{i}", got=f"{root!r:.60}, with a null character")
    for name, variant in grid.variants.items():
        if (number := variant.combinations) > MOST:
            yield MANY_VARIANTS.at(
                f"variants.{name}.product", got=f"{number:,} combinations", most=f"{MOST:,}"
            )
    if grid.interval == "seeds" and len(grid.seeds) * len(grid.root) < 2:
        yield ONE_SEED.at("seeds", got="one seed and one root")
    if BASE in grid.variants:
        expected = f"another name: `{BASE}` is the base recipe itself"
        yield NAME.at(f"variants.{BASE}", got=f"a variant `{BASE}`", expected=expected)
    sections = {"set": grid.set}
    for name, variant in grid.variants.items():
        sections |= {f"variants.{name}.set": variant.set, f"variants.{name}.product": variant.product}
    for section, keys in sections.items():
        if "seed" in keys:
            yield SET_SEED.at(f"{section}.seed", got=f"`seed` in `{section}`")
    named = {"base": grid.base} | {
        f"variants.{name}.recipe": variant.recipe
        for name, variant in grid.variants.items()
        if variant.recipe is not None
    }
    for key, recipe in named.items():
        if not is_file(file.recipe_path(recipe)):
            yield NO_RECIPE.at(key, got=f"`{recipe}`", nearest=did_you_mean(recipe, shipped()))
