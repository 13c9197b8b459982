"""Finds the type hint of a key in the schema, and turns pydantic's errors into problems.

The `where` of these problems is a dotted key; `read` adds file and line.
"""

from __future__ import annotations

import functools
import math
import operator
import types
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import fields, is_dataclass
from typing import Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints

from pydantic import Discriminator, Tag, ValidationError

from lmmkit.errors import Problem, did_you_mean
from lmmkit.errors.recipe import MISSING_KEY, NAME, OUT_OF_RANGE, UNKNOWN_KEY, WRONG_TYPE
from lmmkit.recipe.field_types import Says
from lmmkit.recipe.schema import HIDDEN, Recipe
from lmmkit.recipe.yaml_tree import scalar_value

NO_TYPE = object()  # the type hint of a key that the schema does not have
_LARGEST = 2**63


@functools.cache
def keys_of(cls: type) -> dict[str, Any]:
    """Returns the type hint of each YAML key in a section."""
    hints = get_type_hints(cls, include_extras=True)
    names = [f.name for f in fields(cls) if cls is not Recipe or f.name not in HIDDEN]
    return {name.rstrip("_"): hints[name] for name in names}


def plain_hint(hint: Any, raw: Any = None) -> Any:
    """Returns the hint without annotations and `| None`. Among several section types, `raw` selects one."""
    while True:
        if get_origin(hint) is Annotated:
            hint, *marks = get_args(hint)
            choose = next((m for m in marks if isinstance(m, Discriminator)), None)
            if choose:
                options = {_tag(option): option for option in get_args(hint)}
                tag = str(choose.discriminator(raw))  # type: ignore[operator]
                if tag not in options:
                    return hint
                hint = options[tag]
        elif _is_union(hint) and type(None) in get_args(hint):
            members = [m for m in get_args(hint) if m is not type(None)]
            hint = functools.reduce(operator.or_, members)
        else:
            return hint


def _is_union(hint: Any) -> bool:
    return get_origin(hint) in (Union, types.UnionType)


def _tag(hint: Any) -> str | None:
    marks = get_args(hint)[1:] if get_origin(hint) is Annotated else ()
    return next((mark.tag for mark in marks if isinstance(mark, Tag)), None)


def child(hint: Any, raw: Any, key: str | int) -> Any:
    """Returns the hint of `key` under `hint`, or NO_TYPE. `raw` is the recipe's value at `hint`."""
    hint = plain_hint(hint, raw)
    if is_dataclass(hint):
        return keys_of(hint).get(str(key), NO_TYPE)  # type: ignore[arg-type]
    if get_origin(hint) is tuple and isinstance(key, int):
        items = get_args(hint)
        return items[0] if items[-1] is Ellipsis else items[min(key, len(items) - 1)]
    if isinstance(get_origin(hint), type) and issubclass(get_origin(hint), Mapping):
        return get_args(hint)[1]
    return NO_TYPE


def type_words(hint: Any) -> str:
    """Returns a text that describes the values a hint accepts."""
    if get_origin(hint) is Annotated:
        inner, *marks = get_args(hint)
        says = next((mark.words for mark in marks if isinstance(mark, Says)), None)
        return says or type_words(inner)
    if _is_union(hint):
        return " or ".join(type_words(h) for h in get_args(hint) if h is not type(None))
    if get_origin(hint) is Literal:
        *first, last = map(str, get_args(hint))
        return f"{', '.join(first)} or {last}" if first else last
    if is_dataclass(hint):
        return f"a section with {', '.join(keys_of(hint))}"  # type: ignore[arg-type]
    return "a plain value"


def show_value(value: Any) -> str:
    """Returns a value as text for a problem, cut to one line."""
    match value:
        case None:
            return "nothing"
        case bool():
            return str(value).lower()
        case str():
            return ascii(value) if len(value) < 60 else ascii(value[:57]) + "..."
        case int() if abs(value) >= 10**30:
            return "a number of more than 30 digits"
        case int() | float():
            return f"the number {value!r}"
        case Mapping():
            return "a section" if value else "an empty section"
        case list() | tuple():
            return f"a list of {len(value)}"
    return f"a {type(value).__name__}"


def fix_for(value: Any, hint: Any) -> str:
    """Returns the most likely correction of a `value` that does not fit the type hint `hint`."""
    bare = plain_hint(hint, value)
    literals = _literals(hint)
    if value is None:
        empty = "Write {} where there is nothing to set."
        return empty if _is_section(bare) else "Give a value, or remove the key."
    if isinstance(value, str) and literals:
        return did_you_mean(value, literals)
    if isinstance(value, str) and bare in (int, float) and _looks_like_a_number(value):
        return "Write the number without quotes, commas or underscores."
    if isinstance(value, str) and bare is bool:
        return "Write true or false, without quotes."
    if isinstance(value, (int, float)) and bare is str:
        return "Put it in quotes."
    return "Change the value."


def _looks_like_a_number(text: str) -> bool:
    bare = scalar_value(text.replace("_", "").replace(",", "").strip())
    return isinstance(bare, (int, float)) and not isinstance(bare, bool)


def _is_mapping(hint: Any, raw: Any) -> bool:
    bare = plain_hint(hint, raw)
    return _is_section(bare) and not is_dataclass(bare)


def _is_section(bare: Any) -> bool:
    origin = get_origin(bare)
    return is_dataclass(bare) or (isinstance(origin, type) and issubclass(origin, Mapping))


def _literals(hint: Any) -> list[str]:
    if get_origin(hint) is Literal:
        return list(map(str, get_args(hint)))
    if get_origin(hint) is Annotated or _is_union(hint):
        return [word for arg in get_args(hint) for word in _literals(arg)]
    return []


def problems_of(error: ValidationError, raw: Any, hint: Any) -> Iterator[Problem]:
    """Yields pydantic's errors about `raw`, which should fit `hint`, as problems: each code once per key."""
    seen = set()
    for entry in error.errors(include_url=False, include_context=False):
        problem = _problem(entry, raw, hint)
        if (problem.where, problem.code) not in seen:
            seen.add((problem.where, problem.code))
            yield problem


def unknown_key(key: str, name: str, known: Iterable[str]) -> Problem:
    """Returns the problem of a key that its section does not have."""
    return UNKNOWN_KEY.at(key, got=f"the unknown key `{name}`", fix=did_you_mean(name, known))


def _problem(entry: Any, raw: Any, hint: Any) -> Problem:
    path: list[str] = []
    named = False  # the key itself is wrong
    unexpected = entry["type"] == "unexpected_keyword_argument"
    above, parent = hint, raw
    for i, step in enumerate(entry["loc"], 1):
        last = i == len(entry["loc"])
        if step == "[key]" and last and not unexpected and _is_mapping(above, parent):
            hint, named = get_args(plain_hint(above, parent))[0], True
            break
        below = child(hint, raw, step)
        if below is NO_TYPE and not (unexpected and last):
            continue  # a step inside a pydantic union, not a key
        if isinstance(raw, list) and int(step) >= len(raw):
            break  # the problem belongs to the complete list, which is too short
        above, parent = hint, raw
        if isinstance(raw, (Mapping, list)):  # a bare number may replace a section
            path.append(str(step))
            raw = raw.get(step) if isinstance(raw, Mapping) else raw[int(step)]
        if below is NO_TYPE:
            return unknown_key(".".join(path), str(step), keys_of(plain_hint(hint, parent)))
        hint = below
    key, expected = ".".join(path), type_words(hint)
    got = raw if isinstance(raw, list) else entry["input"]
    if entry["type"] == "missing" and not isinstance(raw, list):
        return MISSING_KEY.at(key, got="nothing", expected=expected, key=path[-1])
    if named:
        return NAME.at(key, got=show_value(path[-1]), expected=expected)
    ranged = entry["type"].startswith(("greater", "less", "too_", "string_too"))
    code = OUT_OF_RANGE if ranged else WRONG_TYPE
    return code.at(key, got=show_value(got), expected=expected, fix=fix_for(got, hint))


def tidy(value: Any, key: str, problems: list[Problem], depth: int = 0) -> Any:
    """Returns a deep copy of `value` in plain dicts, lists and scalars.

    A value that no recipe may contain becomes a problem and None: numbers that are not finite or exceed 64
    bits, text that is not Unicode, keys that are not text, objects, more than 50 levels.
    """

    def refuse(got: str, expected: str) -> None:
        problems.append(WRONG_TYPE.at(key, got=got, expected=expected, fix="Change the value."))

    if depth > 50:
        return refuse("sections that are nested too deeply", "at most 50 nested levels")
    match value:
        case None | bool():
            return value
        case int():
            in_range = -_LARGEST <= value < _LARGEST
            return int(value) if in_range else refuse(show_value(value), "a number of at most 64 bits")
        case float():
            return float(value) if math.isfinite(value) else refuse(show_value(value), "a finite number")
        case str():
            try:
                value.encode()
            except UnicodeEncodeError:
                return refuse(show_value(value), "text in Unicode")
            return str(value)
        case Mapping():
            out = {}
            for name, item in value.items():
                if isinstance(name, str):
                    out[name] = tidy(item, f"{key}.{name}" if key else name, problems, depth + 1)
                else:
                    refuse(f"the key {show_value(name)}", "keys that are texts")
            return out
        case list() | tuple():
            return [tidy(item, f"{key}.{i}", problems, depth + 1) for i, item in enumerate(value)]
    return refuse(show_value(value), "a plain value: text, number, true, false, list or section")
