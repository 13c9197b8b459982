"""Turns YAML 1.2 text into plain dicts, lists and scalars, with the position of every key.

ruamel.yaml only splits the text into events. Scalars are resolved here by the core schema of YAML 1.2, so
`1e-4` is a number, and `no` and `1_000` are texts.
Anchors, aliases, tags and merge keys are refused, so each value is visible where it is used.
`YAML().compose()` is not suitable: its nodes do not show aliases, tags and directives, and its recursion
depth has no limit.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

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

from lmmkit.errors import Problem

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
    """Holds a document as far as it could be read. `silent`: keys whose value was refused here;
    later checks report no further problem for them.
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

    def place(self, event: Any) -> str:
        return f"{self.name}:{event.start_mark.line + 1}:{event.start_mark.column + 1}"

    def complain(self, code: str, event: Any, key: str, got: str, want: str, mend: str) -> None:
        where = f"{self.place(event)} {key}".strip()
        self.tree.problems.append(Problem(f"recipe/{code}", where, got, want, mend))

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
            self.complain("yaml", event, "", "a second document", "one", "Remove `---`.")
            raise _Stop
        if event.version or event.tags:
            self.complain("yaml", event, "", "a % directive", "YAML 1.2 without", "Remove that line.")
            raise _Stop

    def value(self, event: Any, path: str, depth: int) -> Any:
        """Returns the value that begins with `event`, inside `depth` mappings and lists."""
        if isinstance(event, AliasEvent):
            self.refuse("anchor", path, event, f"the alias *{event.anchor}", "Write the value out.")
            return None
        self.refuse_marks(path, event)
        if isinstance(event, ScalarEvent):
            return scalar_value(event.value) if event.style is None else event.value
        if depth >= MAX_DEPTH:
            self.complain(
                "yaml",
                event,
                "",
                "sections nested too deep",
                f"{MAX_DEPTH} levels at most",
                "Flatten it.",
            )
            raise _Stop
        return (self.mapping if isinstance(event, MappingStartEvent) else self.sequence)(path, depth + 1)

    def sequence(self, path: str, depth: int) -> Any:
        items = []
        while not isinstance(event := next(self.events), SequenceEndEvent):
            at = f"{path}.{len(items)}"
            self.tree.places.setdefault(at, self.place(event))
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
            self.complain("yaml", event, above, "a key that is no word", "a word", "Rename it.")
            raise _Stop
        key = event.value
        path = f"{above}.{key}" if above else key
        self.refuse_marks(path, event)
        if key == "<<" and event.style is None:
            self.complain("anchor", event, path, "a merge key", "plain keys", "Write the keys out here.")
            return None
        if key in seen:
            self.complain(
                "duplicate-key",
                event,
                path,
                f"`{key}` twice (first at {seen[key]})",
                "each key once",
                "Remove one of the two.",
            )
            return None
        seen[key] = self.tree.places[path] = self.place(event)
        return key

    def refuse_marks(self, path: str, event: Any) -> None:
        """Adds problems for `&anchor` and `!tag`. The value is kept; a tag hides its later problems."""
        if event.anchor:
            self.refuse("anchor", path, event, f"the anchor &{event.anchor}", "Remove it.", False)
        if event.tag is not None:
            self.refuse("tag", path, event, f"the tag {event.tag}", "Remove the tag.", True)

    def refuse(self, code: str, path: str, event: Any, got: str, mend: str, silent: bool = True) -> None:
        self.complain(code, event, path, got, "plain YAML without anchors or tags", mend)
        if silent:
            self.tree.silent.add(path)


def parse(text: str, name: str) -> YamlTree:
    """Reads YAML `text`. Positions begin with `name`. Raises nothing; the tree contains the problems."""
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
    got, mend = "text that is no YAML", "Mend the line, or the one above it."
    if isinstance(error, MarkedYAMLError):
        mark = error.problem_mark or error.context_mark
        if mark is not None:
            name = f"{name}:{mark.line + 1}:{mark.column + 1}"
        got = error.problem or got
        if "\\t" in got:
            mend = "Indent with spaces, never with tabs."
    return Problem("recipe/yaml", name, got.replace("\n", " "), "YAML 1.2", mend)
