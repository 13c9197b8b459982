"""YAML 1.2 text -> plain dicts, lists and scalars, with the line of every key.

ruamel.yaml only splits the text into events; scalars are resolved here by the core schema of
YAML 1.2, so `1e-4` is a number, `no` a word and `1_000` a text, whatever a library thinks.
Nothing can be shared, tagged or merged, so a recipe reads as it is written.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.error import MarkedYAMLError, YAMLError

from lmmkit.errors import Code, Problem
from lmmkit.errors.recipe import ANCHOR, DUPLICATE_KEY, RECIPE_YAML, TAG

MAX_BYTES = 1_000_000
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
    """The value of a plain (unquoted) scalar."""
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
    """A document as far as it could be read. `silent`: keys whose value was refused here, and
    about which nobody needs to complain again (they hold None).
    """

    value: Any = None
    places: dict[str, str] = field(default_factory=dict)
    problems: list[Problem] = field(default_factory=list)
    silent: set[str] = field(default_factory=set)
    broken: bool = False  # the rest of the document could not be read


class _Aside:
    """Stands for a refused key: its value is read, for its own problems, and dropped."""


@dataclass
class _Open:
    """A mapping or list that is being read; `key` is the mapping's key that waits for a value."""

    path: str
    box: dict | list
    key: str | _Aside | None = None
    seen: dict[str, str] = field(default_factory=dict)


class _Stop(Exception):
    """What follows cannot be read with any sense."""


class _Builder:
    def __init__(self, name: str):
        self.name = name
        self.tree = YamlTree()
        self.stack: list[_Open] = []
        self.documents = 0

    def place(self, event: Any) -> str:
        return f"{self.name}:{event.start_mark.line + 1}:{event.start_mark.column + 1}"

    def complain(self, code: Code, event: Any, key: str, got: str, **fields: object) -> None:
        where = f"{self.place(event)} {key}".strip()
        self.tree.problems.append(code.at(where, got=got, **fields))

    def complain_yaml(self, event: Any, key: str, got: str, fix: str) -> None:
        self.complain(RECIPE_YAML, event, key, got, depth=MAX_DEPTH, fix=fix)

    def feed(self, event: Any) -> None:
        """Takes the next event of the parser."""
        match type(event).__name__:
            case "DocumentStartEvent":
                self.start_document(event)
            case "MappingEndEvent" | "SequenceEndEvent":
                self.stack.pop()
            case "MappingStartEvent" | "SequenceStartEvent" | "ScalarEvent" | "AliasEvent":
                top = self.stack[-1] if self.stack else None
                if top and isinstance(top.box, dict) and top.key is None:
                    self.take_key(top, event)
                else:
                    self.take_value(top, event)

    def start_document(self, event: Any) -> None:
        self.documents += 1
        if self.documents > 1:
            self.complain_yaml(event, "", "a second document", "Remove `---`.")
            raise _Stop
        if event.version or event.tags:
            self.complain_yaml(event, "", "a % directive", "Remove that line.")
            raise _Stop

    def take_key(self, top: _Open, event: Any) -> None:
        if type(event).__name__ != "ScalarEvent":
            self.complain_yaml(event, top.path, "a key that is not a plain word", "Rename the key.")
            raise _Stop
        key = event.value
        path = f"{top.path}.{key}" if top.path else key
        self.refuse_marks(path, event)
        top.key = key
        if key == "<<" and event.style is None:
            self.complain(ANCHOR, event, path, "a merge key")
        elif key in top.seen:
            self.complain(DUPLICATE_KEY, event, path, f"`{key}` twice (first at {top.seen[key]})")
        else:
            top.seen[key] = self.place(event)
            self.tree.places[path] = self.place(event)
            return
        top.key = _Aside()

    def take_value(self, top: _Open | None, event: Any) -> None:
        if top is None:
            path = ""
        elif isinstance(top.box, list):
            path = f"{top.path}.{len(top.box)}"
            self.tree.places.setdefault(path, self.place(event))
        else:
            name = "<refused>" if isinstance(top.key, _Aside) else top.key
            path = f"{top.path}.{name}" if top.path else str(name)
        value: Any = None
        if type(event).__name__ == "AliasEvent":
            self.complain(ANCHOR, event, path, f"the alias *{event.anchor}")
            self.tree.silent.add(path)
        elif type(event).__name__ == "ScalarEvent":
            value = scalar_value(event.value) if event.style is None else event.value
        else:
            value = {} if type(event).__name__ == "MappingStartEvent" else []
        self.refuse_marks(path, event)
        self.store(top, value)
        if isinstance(value, (dict, list)):
            if len(self.stack) >= MAX_DEPTH:
                self.complain_yaml(event, "", "sections nested too deep", "Use fewer levels.")
                raise _Stop
            self.stack.append(_Open(path, value))

    def refuse_marks(self, path: str, event: Any) -> None:
        """Complains about `&anchor` and `!tag`; the value itself still counts."""
        if type(event).__name__ == "AliasEvent":
            return
        if event.anchor:
            self.complain(ANCHOR, event, path, f"the anchor &{event.anchor}")
        if event.tag is not None:
            self.complain(TAG, event, path, f"the tag {event.tag}")
            self.tree.silent.add(path)

    def store(self, top: _Open | None, value: Any) -> None:
        if top is None:
            self.tree.value = value
        elif isinstance(top.box, list):
            top.box.append(value)
        else:
            top.box[top.key] = value
            top.key = None


def parse(text: str, name: str) -> YamlTree:
    """Reads YAML `text`; `name` stands before line and column in places. Raises nothing."""
    builder = _Builder(name)
    tree = builder.tree
    tree.places[""] = name  # of keys that are not there
    try:
        for event in YAML(typ="safe", pure=True).parse(text):
            builder.feed(event)
    except _Stop:
        tree.broken = True
    except (YAMLError, ValueError) as error:  # ValueError: an escape beyond Unicode
        tree.broken = True
        tree.problems.append(_syntax(error, name))
    tree.value = _without_refused(tree.value)
    return tree


def _syntax(error: Exception, name: str) -> Problem:
    got, fix = "text that is not YAML", "Correct the line, or the one above it."
    if isinstance(error, MarkedYAMLError):
        mark = error.problem_mark or error.context_mark
        if mark is not None:
            name = f"{name}:{mark.line + 1}:{mark.column + 1}"
        got = error.problem or got
        if "\\t" in got:
            fix = "Indent with spaces, never with tabs."
    return RECIPE_YAML.at(name, got=got.replace("\n", " "), depth=MAX_DEPTH, fix=fix)


def _without_refused(value: Any) -> Any:
    """Drops what `take_key` read aside."""
    if isinstance(value, dict):
        kept = {key: item for key, item in value.items() if not isinstance(key, _Aside)}
        return {key: _without_refused(item) for key, item in kept.items()}
    return [_without_refused(item) for item in value] if isinstance(value, list) else value
