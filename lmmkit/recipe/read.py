"""Reads a recipe from a file, a text or a mapping, and raises all its problems together."""

from __future__ import annotations

import copy
import difflib
import functools
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter, ValidationError

from lmmkit.errors import Problem, UserError, did_you_mean, raise_all
from lmmkit.errors.recipe import EMPTY, FILE, NULL, SET, UNKNOWN_KEY, WRONG_TYPE
from lmmkit.recipe.error_messages import (
    NO_TYPE,
    child,
    fix_for,
    keys_of,
    problems_of,
    tidy,
    type_words,
    unknown_key,
)
from lmmkit.recipe.model import Model, Vision, VisionFrom, VisionScratch, VisionTimm
from lmmkit.recipe.rules.by_key import RULES
from lmmkit.recipe.rules.names import Names
from lmmkit.recipe.schema import HIDDEN, Recipe
from lmmkit.recipe.shipped import find_recipe, shipped
from lmmkit.recipe.source_positions import Places
from lmmkit.recipe.yaml_tree import MAX_RECIPE_BYTES, YamlTree, parse

# below these keys, the user chooses the names: --set must not create a new one on its path
_NAMED = ("plugins", "data", "stages", "evaluate.tasks")


def read_recipe(
    path: str | os.PathLike[str], *, overrides: Sequence[str] = (), root: Path | None = None
) -> Recipe:
    """Reads the YAML file at `path`, applies `overrides` ("a.b=c", c in YAML), and checks everything.

    `path`: a file, or the name of a shipped recipe. `root`: the folder for relative paths in the recipe.
    Default: the current directory.
    Raises `UserError` with every problem found.
    """
    file = find_recipe(Path(path))
    return read_text(recipe_file_text(file, shipped()), name=str(file), overrides=overrides, root=root)


def read_text(
    text: str,
    *,
    name: str = "recipe.yaml",
    overrides: Sequence[str] = (),
    root: Path | None = None,
) -> Recipe:
    """Reads a recipe from YAML text, like `read_recipe`. `name` is the file name in problems. Raises `UserError`."""
    tree = parse(text, name)
    if tree.broken:
        raise UserError(tree.problems)
    if not isinstance(tree.value, dict):
        got = "no keys" if tree.value is None else "text without keys"
        tree.problems.append(EMPTY.at(name, got=got))
        raise UserError(tree.problems)
    for override in overrides:
        _override(tree, override)
    return _recipe(tree, root)


def from_mapping(mapping: Mapping[str, Any], *, root: Path | None = None) -> Recipe:
    """Returns a checked `Recipe` from dicts with the structure of the YAML. Raises `UserError`."""
    if not isinstance(mapping, Mapping):
        got = f"a {type(mapping).__name__}"
        raise UserError(WRONG_TYPE.at("recipe", got=got, expected="a mapping", fix="Pass a dict."))
    return _recipe(YamlTree(value=mapping), root)


def model_from_mapping(mapping: Mapping[str, Any]) -> Model:
    """Returns a checked `model` section, as stored in a model folder. Raises `UserError`."""
    return from_mapping({**_AROUND, "model": mapping}).model


def vision_from_mapping(mapping: Mapping[str, Any]) -> VisionScratch | VisionTimm:
    """Returns a checked `model.vision` section, as stored in an encoder's folder. Raises `UserError`."""
    try:
        section = _adapter(Vision).validate_python(mapping)
    except ValidationError as error:
        problems = problems_of(error, mapping, Vision)
        raise UserError(replace(p, where=f"model.vision.{p.where}") for p in problems) from None
    assert not isinstance(section, VisionFrom), "an encoder's folder names no other"
    return section


def around(model: Model, stage: str) -> Recipe:
    """Returns a minimal recipe with this model. It opens models that lmmkit did not train."""
    bare = from_mapping({**_AROUND, "stages": {stage: _AROUND["stages"]["none"]}})
    return replace(bare, model=model)


# A minimal valid recipe: the required keys with values that no run uses.
_AROUND: dict[str, Any] = {
    "format": 1,
    "seed": 0,
    "model": {
        "text": {"width": 2, "depth": 1, "heads": 1, "mlp": 1, "context": 1},
        "tokenizer": {"from": "."},
        "chat": {"template": "plain", "image_fit": "crop"},
    },
    "data": {
        "none": {"kind": "llava", "records": "none", "images": ".", "template": "plain", "image_fit": "crop"}
    },
    "stages": {
        "none": {
            "data": {"none": 1.0}, "batch": {"samples": 1}, "length": {"steps": 1}, "train": {"text": {}},
            "optim": {"lr": 1.0}, "losses": {"next_token": 1.0},
        }
    },
}  # fmt: skip


def recipe_file_text(path: Path, shipped_names: Iterable[str]) -> str:
    """Returns the file's text. Raises `UserError` if it cannot be read as text.

    `shipped_names`: what the user may have meant, if there is no such file.
    """

    def refuse(got: str, meant: str = "") -> UserError:
        return UserError(FILE.at(str(path), got=got, limit=MAX_RECIPE_BYTES, meant=meant))

    data = b""
    try:
        if not path.is_file():
            near = difflib.get_close_matches(str(path.with_suffix("")), list(shipped_names), n=1)
            meant = f"Did you mean `{near[0]}`? " if near else ""
            raise refuse("a folder" if path.is_dir() else "no such file", meant)
        with path.open("rb") as file:
            data = file.read(MAX_RECIPE_BYTES + 1)
        if len(data) > MAX_RECIPE_BYTES:
            raise refuse("a larger file")
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data[: error.start].count(b"\n") + 1
        raise refuse(f"bytes in line {line} that are not UTF-8") from None
    except (OSError, ValueError) as error:  # ValueError: a path with a null byte
        raise refuse(str(error)) from None


def _override(tree: YamlTree, override: str) -> None:
    """Applies one "a.b=c" to the tree, or adds a problem to the tree."""
    where = f"--set {override}"

    def refuse(got: str, expected: str, fix: str) -> None:
        tree.problems.append(SET.at(where, got=got, expected=expected, fix=fix))

    key, equals, text = override.partition("=")
    steps = key.strip().split(".")
    if not equals or not all(steps):
        return refuse("no KEY=VALUE", "KEY=VALUE, such as seed=3", "Write dots between keys, then `=`.")
    key = ".".join(steps)
    value = parse(text, where)
    if value.problems:
        tree.problems.extend(value.problems)
        return None
    at, done = tree.value, ""
    for step in steps[:-1]:
        if step not in at and done in _NAMED:
            return refuse(f"the unknown `{step}`", f"a name under {done}", did_you_mean(step, at))
        done = f"{done}.{step}" if done else step
        if step not in at:
            tree.places[done] = where
        at = at.setdefault(step, {})
        if not isinstance(at, dict):
            return refuse(f"`{done}`, which has no keys", "a section", "Set that key as a whole.")
    at[steps[-1]] = value.value
    # the old values below the key are replaced, so their problems are removed too
    tree.silent = {old for old in tree.silent if not f"{old}.".startswith(f"{key}.")}
    kept = {old: at for old, at in tree.places.items() if not old.startswith(f"{key}.")}
    tree.places = {**kept, key: where}
    return None


def _recipe(tree: YamlTree, root: Path | None) -> Recipe:
    """Checks a tree and returns its recipe. Raises `UserError` with all problems."""
    places = Places(dict(tree.places))
    found: list[Problem] = []  # `where` is still a dotted key
    raw = tidy(tree.value, "", found)
    found = [p for p in found if p.where not in tree.silent]
    refused = {p.where for p in found}  # tidy set these values to None
    found += [p for p in _nulls(raw, Recipe, "") if p.where not in refused]
    for name in HIDDEN:  # fields of Recipe that are not keys
        if raw.pop(name, NO_TYPE) is not NO_TYPE:
            found.append(unknown_key(name, name, keys_of(Recipe)))
    recipe = None
    try:
        recipe = _adapter(Recipe).validate_python(
            {**raw, "root": os.path.abspath(root or "."), "places": places}
        )
        wrong = []
    except ValidationError as error:
        known = {p.where for p in found} | tree.silent
        wrong = [p for p in problems_of(error, raw, Recipe) if p.where not in known]
    found += wrong
    found += _cross(raw, [p.where for p in wrong if p.code == UNKNOWN_KEY.code])
    problems = [
        replace(p, where=places.where(p.where)) for p in dict.fromkeys(found) if p.where not in tree.silent
    ]
    raise_all([*tree.problems, *problems])
    assert recipe is not None, "pydantic refused, yet nothing was wrong"
    return recipe


@functools.cache
def _adapter(hint: Any) -> TypeAdapter:
    return TypeAdapter(hint)


def _nulls(raw: Any, hint: Any, key: str) -> Iterator[Problem]:
    """Yields a problem for each null outside plugin settings: it is clearer to omit the key."""
    if raw is None:
        yield NULL.at(key, got="nothing", expected=type_words(hint), fix=fix_for(raw, hint))
    elif isinstance(raw, (dict, list)):
        items = raw.items() if isinstance(raw, dict) else enumerate(raw)
        for name, item in items:
            below = child(hint, raw, name)
            if below is not NO_TYPE and below is not Any:
                yield from _nulls(item, below, f"{key}.{name}" if key else str(name))


def _cross(raw: dict, unknown: Sequence[str]) -> Iterator[Problem]:
    """Yields problems from the rules between keys, for sections that are valid without `unknown` keys."""
    raw = copy.deepcopy(raw)
    for key in unknown:
        *parents, last = key.split(".")
        at: Any = raw
        for parent in parents:
            at = at.get(parent) if isinstance(at, dict) else None
        if isinstance(at, dict):
            at.pop(last, None)
    names = Names.of(raw)
    for pattern, check in RULES.items():
        for key, part, hint in _parts(raw, Recipe, pattern.split("."), ""):
            try:
                value = _adapter(hint).validate_python(part)
            except ValidationError:
                continue
            yield from check(value, key, names)


def _parts(raw: Any, hint: Any, pattern: list[str], key: str) -> Iterator[tuple[str, Any, Any]]:
    """Yields (dotted key, value, hint) for every value that matches `pattern`; `*` matches any name."""
    if not pattern and raw is not None:
        yield key, raw, hint
    if not pattern or not isinstance(raw, dict):
        return
    first, *rest = pattern
    for name in raw if first == "*" else [first]:
        below = child(hint, raw, name)
        if name in raw and below is not NO_TYPE:
            yield from _parts(raw[name], below, rest, f"{key}.{name}" if key else name)
