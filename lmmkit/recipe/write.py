"""Turns a recipe into plain mappings and YAML, and computes its digest."""

from __future__ import annotations

import functools
import hashlib
import io
import json
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, is_dataclass
from typing import Any

from ruamel.yaml import YAML

from lmmkit.recipe.schema import HIDDEN, Recipe
from lmmkit.recipe.stage import Weight

BREAKS = frozenset("\x85\u2028\u2029")  # line breaks of Unicode, which ruamel folds into spaces
MATHEMATICS = ("format", "seed", "model", "numerics", "plugins", "stages")  # and `teachers`, if there are any


def to_mapping(recipe: Recipe) -> dict[str, Any]:
    """Returns the recipe as a mapping for `from_mapping`, with defaults, without absent keys."""
    return _plain(recipe)


def section_mapping(section: object) -> dict[str, Any]:
    """Returns one section as a mapping, with defaults, without absent keys."""
    return _plain(section)


def _plain(value: Any) -> Any:
    if isinstance(value, Weight) and value == Weight(weight=value.weight) and value.weight is not None:
        return value.weight
    if is_dataclass(value):
        items = ((f.name, getattr(value, f.name)) for f in fields(value) if f.name not in HIDDEN)
        return {name.rstrip("_"): _plain(item) for name, item in items if item is not None}
    if isinstance(value, Mapping):
        return {name: _plain(item) for name, item in value.items()}
    return [_plain(item) for item in value] if isinstance(value, (list, tuple)) else value


def dump(recipe: Recipe) -> str:
    """Returns the recipe as YAML text. Reading that text gives an equal recipe."""
    return yaml_text(to_mapping(recipe))


def yaml_text(mapping: Mapping[str, Any]) -> str:
    """Returns plain dicts, lists and scalars as YAML text, in their given order."""
    return _dumped(mapping, flow=None)  # flow None: innermost sections on one line


def flow_text(value: Any) -> str:
    """Returns a plain value as YAML on one line: `true`, `{r: 8, alpha: 16}`."""
    return _dumped(value, flow=True).removesuffix("...\n").strip()  # ruamel adds dots after a scalar


def _quoted(representer: Any, text: str) -> Any:
    """Represents a text; in double quotes what ruamel would read as something else: a text that begins with `?`,
    `:` or `-` as a key or an item, the line breaks of Unicode as spaces."""
    style = '"' if text[:1] in ("?", ":", "-") or BREAKS.intersection(text) else None
    return representer.represent_scalar("tag:yaml.org,2002:str", text, style=style)


@dataclass(frozen=True)
class _Plain:
    """Holds a plain value, and is equal to another one that Python shows alike: `1` and `true` are unlike."""

    shown: str
    value: Any = field(compare=False)


def _dumped(value: Any, flow: bool | None) -> str:
    return _written(_Plain(repr(value), value), flow)


@functools.lru_cache(maxsize=16)  # a run writes its recipe into several folders; each time takes 12 ms
def _written(plain: _Plain, flow: bool | None) -> str:
    yaml = YAML(typ="safe", pure=True)
    yaml.default_flow_style = flow
    yaml.sort_base_mapping_type_on_output = False  # type: ignore  # the order is part of a recipe
    yaml.width = 10_000
    yaml.allow_unicode = True
    yaml.representer.ignore_aliases = lambda data: True
    yaml.representer.add_representer(str, _quoted)
    out = io.StringIO()
    yaml.dump(plain.value, out)
    return out.getvalue()


def digest(recipe: Recipe) -> str:
    """Returns the sha256 (hex) over all keys that determine the mathematics and the data of the run.

    Layout, comments, root, speed, parallel, output, evaluate and validation have no effect. The order of
    stages, plugins, sources and terms has: stages run in order, and sums of floats depend on their order.
    """
    plain = to_mapping(recipe)
    decisive = {key: plain[key] for key in (*MATHEMATICS, "data", *(["teachers"] if recipe.teachers else []))}
    decisive["stages"] = {
        name: {key: value for key, value in stage.items() if key != "validate"}
        for name, stage in plain["stages"].items()
    }
    return hashlib.sha256(json.dumps(decisive, ensure_ascii=True).encode()).hexdigest()
