"""Turns YAML 1.2 text into plain dicts, lists and scalars, with the position of every key.

ruamel.yaml only splits the text into events. Scalars get their values here, by the core schema of YAML 1.2:
`1e-4` is a number, `no` and `1_000` are text.
Anchors, aliases, tags and merge keys are refused, so each value is visible where it is used.
`YAML().compose()` is not suitable: its nodes do not show aliases, tags and directives, and its recursion
depth has no limit.
"""

from __future__ import annotations

import copy
import functools
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, NoReturn

from ruamel.yaml import YAML
from ruamel.yaml.error import MarkedYAMLError, YAMLError
from ruamel.yaml.events import (
    AliasEvent,
    DocumentStartEvent,
    MappingEndEvent,
    MappingStartEvent,
    ScalarEvent,
    SequenceEndEvent,
)

from lmmkit.errors import Code, Problem
from lmmkit.errors.recipe import ANCHOR, DUPLICATE_KEY, RECIPE_YAML, TAG

MAX_RECIPE_BYTES = 1_000_000
MAX_DEPTH = 50

_INT = re.compile(r"[-+]?[0-9]{1,25}")
_BASED = re.compile(r"0o[0-7]{1,25}|0x[0-9a-fA-F]{1,25}")
_FLOAT = re.compile(r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?")
_INF = re.compile(r"[-+]?\.(inf|Inf|INF)")
_WORDS = {
    **dict.fromkeys(("", "~", "null", "Null", "NULL"), None),
    **dict.fromkeys(("true", "True", "TRUE"), True),
    **dict.fromkeys(("false", "False", "FALSE"), False),
    **dict.fromkeys((".nan", ".NaN", ".NAN"), float("nan")),
}


def scalar_value(text: str) -> Any:
    """Returns the value of a plain (unquoted) scalar."""
    if text in _WORDS:
        return _WORDS[text]
    if _INT.fullmatch(text):
        return int(text)
    if _BASED.fullmatch(text):
        return int(text, 0)
    if _FLOAT.fullmatch(text):
        return float(text)
    if _INF.fullmatch(text):
        return float(text.replace(".", ""))
    return text


@dataclass
class YamlTree:
    """Holds a document as far as it could be read.

    `silent`: keys whose value was refused here; later checks report no further problem for them.
    """

    value: Any = None
    places: dict[str, str] = field(default_factory=dict)
    problems: list[Problem] = field(default_factory=list)
    silent: set[str] = field(default_factory=set)
    broken: bool = False  # the rest of the document could not be read


class _Stop(Exception):
    """Signals that the rest of the document cannot be read."""


class _Reader:
    """Reads the events of a text, depth first and never deeper than `MAX_DEPTH`."""

    def __init__(self, name: str, events: Iterator[Any]):
        self.name, self.events = name, events
        self.tree = YamlTree(places={"": name})  # the position for keys that the file does not contain

    def position(self, event: Any) -> str:
        return f"{self.name}:{event.start_mark.line + 1}:{event.start_mark.column + 1}"

    def complain(self, code: Code, event: Any, key: str, got: str, **fields: object) -> None:
        """Adds a problem at an event."""
        self.tree.problems.append(code.at(f"{self.position(event)} {key}".strip(), got=got, **fields))

    def stop(self, event: Any, got: str, expected: str, fix: str, key: str = "") -> NoReturn:
        """Adds a problem and ends the reading."""
        self.complain(RECIPE_YAML, event, key, got, expected=expected, fix=fix)
        raise _Stop

    def read(self) -> None:
        """Reads the document. The text may contain only one."""
        documents = 0
        for event in self.events:
            if isinstance(event, DocumentStartEvent):
                documents += 1
                self.start_document(event, documents)
                self.tree.value = self.value(next(self.events), "", 0)

    def start_document(self, event: Any, number: int) -> None:
        if number > 1:
            self.stop(event, "a second document", "one document", "Remove `---`.")
        if event.version or event.tags:
            self.stop(event, "a % directive", "YAML 1.2 without directives", "Remove that line.")

    def value(self, event: Any, path: str, depth: int) -> Any:
        """Returns the value that begins with `event`, inside `depth` mappings and lists."""
        if isinstance(event, AliasEvent):
            self.complain(ANCHOR, event, path, f"the alias *{event.anchor}")
            self.tree.silent.add(path)
            return None
        self.refuse_properties(path, event)
        if isinstance(event, ScalarEvent):
            return scalar_value(event.value) if event.style is None else event.value
        if depth >= MAX_DEPTH:
            expected = f"at most {MAX_DEPTH} nested levels"
            self.stop(event, "sections that are nested too deeply", expected, "Use fewer levels.")
        return (self.mapping if isinstance(event, MappingStartEvent) else self.sequence)(path, depth + 1)

    def sequence(self, path: str, depth: int) -> Any:
        items = []
        while not isinstance(event := next(self.events), SequenceEndEvent):
            at = f"{path}.{len(items)}"
            self.tree.places.setdefault(at, self.position(event))
            items.append(self.value(event, at, depth))
        return items

    def mapping(self, path: str, depth: int) -> Any:
        items, seen = {}, {}
        while not isinstance(event := next(self.events), MappingEndEvent):
            key = self.key(event, path, seen)
            name = "<refused>" if key is None else key
            value = self.value(next(self.events), f"{path}.{name}" if path else name, depth)
            if key is not None:
                items[key] = value
        return items

    def key(self, event: Any, above: str, seen: dict[str, str]) -> str | None:
        """Returns a mapping's key. None: the key is refused, and its value is read only for its problems."""
        if not isinstance(event, ScalarEvent):
            self.stop(event, "a key that is a list or a section", "a word", "Rename the key.", above)
        key = event.value
        path = f"{above}.{key}" if above else key
        self.refuse_properties(path, event)
        if key == "<<" and event.style is None:
            self.complain(ANCHOR, event, path, "a merge key")
            return None
        if key in seen:
            self.complain(DUPLICATE_KEY, event, path, f"`{key}` twice (first at {seen[key]})")
            return None
        seen[key] = self.tree.places[path] = self.position(event)
        return key

    def refuse_properties(self, path: str, event: Any) -> None:
        """Adds problems for `&anchor` and `!tag`. The value is kept; a tag hides its later problems."""
        if event.anchor:
            self.complain(ANCHOR, event, path, f"the anchor &{event.anchor}")
        if event.tag is not None:
            self.complain(TAG, event, path, f"the tag {event.tag}")
            self.tree.silent.add(path)


def parse(text: str, name: str) -> YamlTree:
    """Reads YAML `text`. Positions begin with `name`. Raises nothing; the tree contains the problems."""
    return copy.deepcopy(_parsed(text, name))


@functools.lru_cache(maxsize=32)  # a grid reads one file for all its arms and seeds
def _parsed(text: str, name: str) -> YamlTree:
    reader = _Reader(name, YAML(typ="safe", pure=True).parse(text))
    try:
        reader.read()
    except _Stop:
        reader.tree.broken = True
    except (YAMLError, ValueError) as error:  # ValueError: an escape outside Unicode
        reader.tree.broken = True
        reader.tree.problems.append(_syntax(error, name))
    return reader.tree


def _syntax(error: Exception, name: str) -> Problem:
    got, fix = "text that is not YAML", "Correct this line, or the line above it."
    if isinstance(error, MarkedYAMLError):
        mark = error.problem_mark or error.context_mark
        if mark is not None:
            name = f"{name}:{mark.line + 1}:{mark.column + 1}"
        got = error.problem or got
        if "\\t" in got:
            fix = "Indent with spaces, not with tabs."
    return RECIPE_YAML.at(name, got=got.replace("\n", " "), expected="YAML 1.2", fix=fix)
