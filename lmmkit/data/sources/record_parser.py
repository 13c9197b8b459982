"""Checks one record of a LLaVA records file and converts it to the parts of a sample."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, NamedTuple

from lmmkit.api.sample import Role, Turn
from lmmkit.data.sources.image_paths import is_plain, path_fault
from lmmkit.data.sources.json_records import RawRecord
from lmmkit.errors import Code, Problem
from lmmkit.errors.data import (
    ANSWER,
    FROM,
    JSON,
    LONG,
    MARKERS,
    ORDER,
    RECORDS_PATH,
    RECORDS_PLAIN,
    RECORDS_TURNS,
    TEXT,
    TYPE,
)

MARKER = "<image>"
MAX_CHARS = 1_000_000  # of one conversation; tokenizing takes seconds beyond it
_ROLES: dict[str, Role] = {"human": "user", "gpt": "assistant"}
_OWN_KEYS = frozenset({"id", "image", "conversations"})

Other = str | int | float | tuple[str, ...]
"""The value of another key."""


class ParsedRecord(NamedTuple):
    """Holds a checked record: the parts of a `Sample`. `images` are relative paths; `key` may be empty."""

    key: str
    turns: tuple[Turn, ...]
    images: tuple[str, ...]
    meta: dict[str, Other] | None


class RecordSize(NamedTuple):
    """Holds what an index stores of a good record. `words`: number of words of all turns, separated by
    blanks, as LLaVA counts them. `dropped`: number of answers before any question."""

    key: str
    images: tuple[str, ...]
    words: int
    dropped: int = 0


def measure_record(raw: RawRecord, template: str) -> RecordSize | None:
    """Returns the measures of a record in a simple, good form; None if `RecordParser` must check it.

    It accepts only records that `RecordParser` accepts. It is ten times as fast, and most records of a
    file have the simple form.
    """
    value = raw.value
    if raw.faults or not raw.no_surrogates or type(value) is not dict or raw.length > MAX_CHARS:
        return None
    key, path, turns = value.get("id"), value.get("image"), value.get("conversations")
    if key is not None and type(key) is not str and type(key) is not int:
        return None
    if type(turns) is not list or not turns or len(turns) % 2 or (template == "plain" and len(turns) != 2):
        return None
    if path is not None and (type(path) is not str or not is_plain(path)):
        return None
    words, marks, asked = 0, False, True
    for turn in turns:
        if type(turn) is not dict or turn.get("from") != ("human" if asked else "gpt"):
            return None
        text = turn.get("value")
        if type(text) is not str:
            return None
        n = len(text.split())
        if MARKER in text:
            if not asked or path is None or marks:
                return None
            marks = True
        if not n and not asked:
            return None
        words += n
        asked = not asked
    if marks != (path is not None) or (template == "plain" and path is None):
        return None
    return RecordSize("" if key is None else str(key), () if path is None else (path,), words)


@dataclass(kw_only=True)
class RecordParser:
    """Reads one record and collects its problems, each with the part of the record: "conversations.3.from".

    The caller knows the place of the record, so `where` of the problems is empty. `id` is the id of the
    record, for messages.
    """

    template: str
    problems: list[tuple[str, Problem]] = field(default_factory=list)
    id: str = ""
    dropped: int = 0

    def read(self, raw: RawRecord) -> ParsedRecord | None:
        """Returns the record, or None if there are problems."""
        for got, expected in raw.faults:
            self.wrong(JSON, "", got, expected=expected)
        if self.problems:
            return None
        value = raw.value
        if not isinstance(value, dict):
            self.wrong(TYPE, "", _kind(value), expected="an object")
            return None
        key = self.key(value.get("id"))
        images = self.images(value.get("image"))
        turns = self.turns(value.get("conversations"))
        if turns and not self.problems:
            turns = self.place(turns, len(images))
        others = ((k, _kept(v)) for k, v in value.items() if k not in _OWN_KEYS)
        meta = {k: v for k, v in others if v is not None}
        texts = [
            t for v in meta.values() for t in (v if isinstance(v, tuple) else (v,)) if isinstance(t, str)
        ]
        self.encodable([*meta, *texts], "another key", "")
        if self.problems:
            return None
        return ParsedRecord(key, tuple(turns), images, meta or None)

    def wrong(self, code: Code, key: str, got: str, **fields: object) -> None:
        """Adds a problem of the part `key`."""
        self.problems.append((key, code.at("", got=got, **fields)))

    def key(self, value: object) -> str:
        """Returns the id of the record as text; empty if it has none."""
        if isinstance(value, bool) or not isinstance(value, str | int | None):
            self.wrong(TYPE, "id", f"`id` {_kind(value)}", expected="a string or an integer")
            return ""
        key = "" if value is None else str(value)
        if self.encodable([key], "`id`", "id") and key:
            self.id = key[:80]
        return key

    def images(self, value: object) -> tuple[str, ...]:
        """Returns the image paths of the record."""
        if value is None:
            return ()
        paths: list[str] = []
        for path in value if isinstance(value, list) else [value]:
            if not isinstance(path, str):
                self.wrong(TYPE, "image", f"`image` {_kind(path)}", expected="a path or a list of paths")
                continue
            paths.append(path)
            if self.encodable([path], "`image`", "image") and (got := path_fault(path)):
                self.wrong(RECORDS_PATH, "image", got)
        return tuple(paths)

    def turns(self, value: object) -> list[Turn]:
        """Returns the turns as written, with all markers still in the text."""
        if not isinstance(value, list) or not value:
            got = "none" if value is None or value == [] else _kind(value)
            self.wrong(RECORDS_TURNS, "conversations", f"`conversations` {got}")
            return []
        turns = [self.turn(turn, i) for i, turn in enumerate(value)]
        found = [turn for turn in turns if turn is not None]
        if len(found) < len(turns):
            return []
        if found[0].role == "assistant":
            found = found[1:]
            self.dropped = 1
        self.order(found)
        if (n := sum(len(turn.text) for turn in found)) > MAX_CHARS:
            self.wrong(LONG, "conversations", f"{n} characters", most=f"{MAX_CHARS} characters")
        return found

    def turn(self, value: object, i: int) -> Turn | None:
        """Returns turn i, or None if it is bad."""
        if not isinstance(value, dict):
            self.wrong(TYPE, f"conversations.{i}", f"turn {i} {_kind(value)}", expected="an object")
            return None
        who, text = value.get("from"), value.get("value")
        if not isinstance(who, str) or who not in _ROLES:
            self.wrong(FROM, f"conversations.{i}.from", f"turn {i} from {_kind(who)}")
        if not isinstance(text, str):
            at = f"conversations.{i}.value"
            self.wrong(TYPE, at, f"turn {i} value {_kind(text)}", expected="a string")
        elif (
            self.encodable([text], f"turn {i}", f"conversations.{i}.value")
            and isinstance(who, str)
            and who in _ROLES
        ):
            return Turn(_ROLES[who], text)
        return None

    def order(self, turns: list[Turn]) -> None:
        """Checks that questions and answers alternate and that every question has an answer."""
        if not turns:
            self.wrong(RECORDS_TURNS, "conversations", "no question")
            return
        for i, turn in enumerate(turns):
            if turn.role != ("user", "assistant")[i % 2]:
                at = i + self.dropped
                self.wrong(ORDER, f"conversations.{at}", f"turn {at} from the {turn.role} again")
                return
            if turn.role == "assistant" and not turn.text.strip():
                at = i + self.dropped
                self.wrong(ANSWER, f"conversations.{at}", f"turn {at} an empty answer")
        if turns[-1].role == "user":
            self.wrong(ANSWER, "conversations", "a last question without an answer")
        elif self.template == "plain" and len(turns) != 2:
            self.wrong(RECORDS_PLAIN, "conversations", f"{len(turns)} turns")

    def place(self, turns: list[Turn], images: int) -> list[Turn]:
        """Returns the turns with the markers removed and the images before the text.

        If the record has one image, several markers in one turn mean this one image, as in LLaVA.
        """
        marks = [turn.text.count(MARKER) if turn.role == "user" else 0 for turn in turns]
        if images == 1:
            marks = [min(mark, 1) for mark in marks]
        if sum(marks) != images:
            at = [i + self.dropped for i, mark in enumerate(marks) if mark]
            got = f"{images} images for {sum(marks)} {MARKER} (turns {at})"
            self.wrong(MARKERS, "conversations", got)
        elif images and any(MARKER in turn.text for turn in turns if turn.role == "assistant"):
            self.wrong(MARKERS, "conversations", f"{MARKER} in an answer")
        elif self.template == "plain" and not images:
            self.wrong(RECORDS_PLAIN, "image", "no image")
        return [self.placed(turn, mark) for turn, mark in zip(turns, marks, strict=True)]

    def placed(self, turn: Turn, images: int) -> Turn:
        """Returns one turn with its markers removed and `images` images."""
        if turn.role == "assistant":
            return turn
        if self.template == "plain":
            return Turn("user", "", images)
        return Turn("user", turn.text.replace(MARKER, "").strip(), images) if images else turn

    def encodable(self, texts: list[str], what: str, key: str) -> bool:
        """Returns whether UTF-8 can encode all of them. Adds a problem if not."""
        for text in texts:
            if not text.isascii() and any("\ud800" <= char <= "\udfff" for char in text):
                self.wrong(TEXT, key, f"a lone surrogate in {what}")
                return False
        return True


def measured_record(record: ParsedRecord, value: Any, dropped: int) -> RecordSize:
    """Returns the measures of a good record, from its JSON value and the checked record."""
    words = sum(len(turn["value"].split()) for turn in value["conversations"])
    return RecordSize(record.key, record.images, words, dropped)


def _kept(value: object) -> Other | None:
    """Returns the value of another key: a text, a number, or a list of texts; None for others."""
    if isinstance(value, list):
        return tuple(value) if all(isinstance(each, str) for each in value) else None
    return value if isinstance(value, str | int | float) else None


def _kind(value: object) -> str:
    """Describes a JSON value in words."""
    if value is None or isinstance(value, bool):
        return "null" if value is None else str(value).lower()
    if isinstance(value, str):
        return f"{value[:40]!a}"
    names = {dict: "an object", list: "a list", int: "a number", float: "a number"}
    return f"is {names[type(value)]}"
