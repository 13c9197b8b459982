"""Compares two recipes key by key, and classifies each difference."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final, Literal

from lmmkit.recipe.schema import Recipe
from lmmkit.recipe.write import to_mapping

SectionClass = Literal["mathematics", "data", "speed", "output"]
ABSENT: Final = "(absent)"  # the value in a Difference for a key that one recipe lacks


@dataclass(frozen=True, kw_only=True)
class Difference:
    """Describes one key with different values. A key that only one recipe has is `ABSENT` in the other.

    If both recipes have the same names in a different order, `key` is the section, and the values are
    the two lists of names.
    """

    key: str
    section_class: SectionClass
    a: Any
    b: Any


SECTIONS: Final[Mapping[str, SectionClass]] = {
    "format": "mathematics", "seed": "mathematics", "model": "mathematics", "numerics": "mathematics",
    "plugins": "mathematics", "teachers": "mathematics", "data": "data", "stages": "mathematics", "evaluate": "output",
    "output": "output", "speed": "speed", "parallel": "speed",
}  # fmt: skip
IN_STAGES: Final[Mapping[str, SectionClass]] = {
    "data": "data", "batch": "mathematics", "length": "mathematics", "train": "mathematics",
    "optim": "mathematics", "losses": "mathematics", "tokens": "mathematics", "validate": "output",
    "reference": "mathematics",
    "start": "data",  # a folder path: another path does not change the computation
}  # fmt: skip

CUT: Final = ("speed.tokens", "speed.share_prefix", "parallel")
"""The keys that decide, with the number of ranks, how a step is cut into micro-batches."""


def section_class(key: str, *, cut: bool = False) -> SectionClass:
    """Returns the class of a dotted key. The section decides it; inside a stage, the stage's section.

    `cut`: whether a term depends on how a step is cut, so that the keys in `CUT` are mathematics.

    Raises `KeyError` for a key without a class.
    """
    if cut and is_cut(key):
        return "mathematics"
    match key.split("."):
        case ["stages", _, section, *_]:
            return IN_STAGES[section]
        case [section, *_]:
            return SECTIONS[section]
    raise KeyError(key)


def is_cut(key: str) -> bool:
    """Returns whether a dotted key decides how a step is cut."""
    return any(key == each or key.startswith(f"{each}.") for each in CUT)


def diff(a: Recipe, b: Recipe, *, cut: bool = False) -> list[Difference]:
    """Returns every key whose value differs, in the order of `a`. Ignores `root` and `places`. `cut`: as in
    `section_class`."""
    return [
        Difference(key=key, section_class=section_class(key, cut=cut), a=x, b=y)
        for key, x, y in _walk(to_mapping(a), to_mapping(b), "")
    ]


def _walk(a: Any, b: Any, key: str) -> Iterator[tuple[str, Any, Any]]:
    if isinstance(a, dict) and isinstance(b, dict):
        order_a, order_b = [k for k in a if k in b], [k for k in b if k in a]
        if order_a != order_b:
            yield key, order_a, order_b
        for name in dict.fromkeys((*a, *b)):
            below = f"{key}.{name}" if key else name
            yield from _walk(a.get(name, ABSENT), b.get(name, ABSENT), below)
    elif isinstance(a, list) and isinstance(b, list) and a == b:
        return
    # 1, 1.0 and true are equal in Python but not in a plugin's settings
    elif type(a) is not type(b) or a != b:
        yield key, a, b
