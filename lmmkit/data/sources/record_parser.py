"""Checks one record of a LLaVA records file and converts it to the parts of a sample."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal, NamedTuple

from lmmkit.api.sample import Role, Turn
from lmmkit.data.image_markers import MARKER, with_images
from lmmkit.data.sources.image_paths import is_plain, path_fault
from lmmkit.data.sources.json_records import RawRecord
from lmmkit.data.sources.record_keys import (
    MEDIA_KEYS,
    MEDIA_MARKERS,
    OTHER_FORMS,
    OWN_KEYS,
    RARE,
    WEIGHTS,
    Other,
    kept,
    lost_keys,
    unread_keys,
)
from lmmkit.errors import Code, Problem
from lmmkit.errors.data import (
    ANSWER,
    FROM,
    IMAGE_KEYS,
    JSON,
    LONG,
    MARKERS,
    MEDIA,
    ORDER,
    OTHER_FORM,
    QUESTION,
    RECORDS_PATH,
    RECORDS_PLAIN,
    RECORDS_TURNS,
    SYSTEM,
    TEXT,
    TURN_WEIGHT,
    TYPE,
)
from lmmkit.progress import plural

MAX_CHARS = 1_000_000  # of one conversation; tokenizing takes seconds beyond it
_ROLES: dict[str, Role] = {"human": "user", "gpt": "assistant"}


class ParsedRecord(NamedTuple):
    """Holds a checked record: the parts of a `Sample`. `images` are relative paths; `key` may be empty."""

    key: str
    turns: tuple[Turn, ...]
    images: tuple[str, ...]
    system: str
    meta: dict[str, Other] | None


class RecordSize(NamedTuple):
    """Holds what an index stores of a good record. `words`: number of words of all turns, separated by
    blanks, as LLaVA counts them. `system`: whether the record has a system prompt. `notes`: what of the
    record is left out, or is read in another way than it is written."""

    key: str
    images: tuple[str, ...]
    words: int
    system: bool = False
    notes: tuple[str, ...] = ()


def measure_record(raw: RawRecord, template: str) -> RecordSize | None:
    """Returns the measures of a record in a simple, good form; None if `RecordParser` must check it.

    It accepts only records that `RecordParser` accepts. It is ten times as fast, and most records of a
    file have the simple form.
    """
    value = raw.value
    if (
        raw.faults
        or raw.problems
        or not raw.no_surrogates
        or type(value) is not dict
        or raw.length > MAX_CHARS
    ):
        return None
    if not RARE.isdisjoint(value):
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
        if type(turn) is not dict or turn.get("from") != ("human" if asked else "gpt") or len(turn) != 2:
            return None
        text = turn.get("value")
        if type(text) is not str:
            return None
        n = len(text.split())
        if MARKER in text:
            if not asked or path is None or marks or text.count(MARKER) > 1:
                return None
            marks = True
        if not n or (asked and any(marker in text for marker in MEDIA_MARKERS)):
            return None
        words += n
        asked = not asked
    if marks != (path is not None) or (template == "plain" and path is None):
        return None
    images = () if path is None else (path,)
    return RecordSize("" if key is None else str(key), images, words, notes=(*raw.notes, *lost_keys(value)))


@dataclass(kw_only=True)
class RecordParser:
    """Reads one record and collects its problems, each with the part of the record: "conversations.3.from".

    The caller knows the place of the record, so `where` of the problems is empty. `id` is the id of the
    record, for messages.
    """

    template: str
    problems: list[tuple[str, Problem]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    id: str = ""
    system: str = ""
    names: Mapping[str, str] = field(default_factory=dict)  # of parts, in a record of another form
    inside: frozenset[str] = frozenset()  # names of images that the record contains
    before: int = 0  # entries of `conversations` before the first question
    words: int = 0

    def read(self, raw: RawRecord) -> ParsedRecord | None:
        """Returns the record, or None if there are problems."""
        for got, expected in raw.faults:
            self.wrong(JSON, "", got, expected=expected)
        self.problems += raw.problems
        self.notes += raw.notes
        self.names, self.inside = raw.names, raw.inside
        if self.problems:
            return None
        value = raw.value
        if not isinstance(value, dict):
            self.wrong(TYPE, "", value_kind(value), expected="an object")
            return None
        key = self.key(value.get("id"))
        self.media(value)
        images = self.images(value)
        self.system = self.system_prompt(value.get("system"), "system")
        turns = self.turns(value)
        if turns and not self.problems:
            turns = self.place(turns, len(images), marked=not value.get("images"))
        self.notes += unread_keys(value, has_images=bool(images))
        self.notes += lost_keys(value)
        others = ((k, kept(v)) for k, v in value.items() if k not in OWN_KEYS)
        meta = {k: v for k, v in others if v is not None}
        texts = [
            t for v in meta.values() for t in (v if isinstance(v, tuple) else (v,)) if isinstance(t, str)
        ]
        self.encodable([*meta, *texts], "another key", "")
        if self.problems:
            return None
        return ParsedRecord(key, tuple(turns), images, self.system, meta or None)

    def size(self, record: ParsedRecord) -> RecordSize:
        """Returns the measures of the good record that was read."""
        notes = tuple(dict.fromkeys(self.notes))
        return RecordSize(record.key, record.images, self.words, bool(record.system), notes)

    def wrong(self, code: Code, key: str, got: str, **fields: object) -> None:
        """Adds a problem of the part `key`."""
        part = ".".join(self.named(word) for word in key.split("."))
        self.problems.append((part, code.at("", got=got, **fields)))

    def named(self, part: str) -> str:
        """Returns the name that a part of LLaVA's form has in the record."""
        return self.names.get(part, part)

    def key(self, value: object) -> str:
        """Returns the id of the record as text; empty if it has none."""
        if isinstance(value, bool) or not isinstance(value, str | int | None):
            self.wrong(TYPE, "id", f"`id` {value_kind(value)}", expected="a string or an integer")
            return ""
        key = "" if value is None else str(value)
        if self.encodable([key], "`id`", "id") and key:
            self.id = key[:80]
        return key

    def media(self, record: Mapping[str, object]) -> None:
        """Refuses a record with a video or a sound."""
        for key in MEDIA_KEYS:
            if record.get(key):
                self.wrong(MEDIA, key, f"`{key}`")

    def images(self, record: Mapping[str, object]) -> tuple[str, ...]:
        """Returns the image paths of the record, from `image` or `images`."""
        given = [key for key in ("image", "images") if record.get(key) not in (None, [])]
        found = [self.paths(record[key], key) for key in given]
        if len(found) == 2 and found[0] != found[1]:
            self.wrong(IMAGE_KEYS, "images", "`image` and `images` with different paths")
        return found[0] if found else ()

    def paths(self, value: object, key: str) -> tuple[str, ...]:
        """Returns the image paths under one key."""
        paths: list[str] = []
        for path in value if isinstance(value, list) else [value]:
            if not isinstance(path, str):
                got = f"`{self.named(key)}` {value_kind(path)}"
                self.wrong(TYPE, key, got, expected="a path or a list of paths")
                continue
            paths.append(path)
            if path in self.inside or not self.encodable([path], f"`{self.named(key)}`", key):
                continue
            if got := path_fault(path):
                self.wrong(RECORDS_PATH, key, got)
        return tuple(paths)

    def system_prompt(self, value: object, key: str) -> str:
        """Returns a system prompt; empty if there is none."""
        if value is None:
            return ""
        if not isinstance(value, str):
            self.wrong(TYPE, key, f"a system prompt {value_kind(value)}", expected="a string")
            return ""
        if not self.encodable([value], "the system prompt", key) or not value.strip():
            return ""
        if self.template == "plain":
            self.wrong(RECORDS_PLAIN, key, "a system prompt")
        return value

    def turns(self, record: Mapping[str, object]) -> list[Turn]:
        """Returns the turns after the system prompt as written, with all markers still in the text."""
        value = record.get("conversations")
        other = [key for key in OTHER_FORMS if key in record]
        if value is None and other:
            self.wrong(OTHER_FORM, other[0], f"`{other[0]}` and no `conversations`")
            return []
        if not isinstance(value, list) or not value:
            got = "none" if value is None or value == [] else value_kind(value)
            self.wrong(RECORDS_TURNS, "conversations", f"`{self.named('conversations')}` {got}")
            return []
        self.before = self.first_turn(value[0])
        turns = [self.turn(turn, i) for i, turn in enumerate(value) if i >= self.before]
        found = [turn for turn in turns if turn is not None]
        if len(found) < len(turns):
            return []
        if found and found[0].role == "assistant":
            found = found[1:]
            self.before += 1
            self.notes.append("an answer before any question is left out")
        self.order(found)
        if (n := sum(len(turn.text) for turn in found)) > MAX_CHARS:
            self.wrong(LONG, "conversations", f"{n} characters", most=f"{MAX_CHARS} characters")
        return found

    def first_turn(self, value: object) -> int:
        """Reads the first turn if it is a system prompt. Returns 1 if it is, else 0."""
        if not isinstance(value, dict) or value.get("from", value.get("role")) != "system":
            return 0
        name = "value" if "value" in value else "content"
        found = self.system_prompt(value.get(name), f"conversations.0.{name}")
        if self.system and found and found != self.system:
            self.wrong(SYSTEM, "conversations.0", "another system prompt than in `system`")
        self.system = self.system or found
        self.words += len(found.split())
        self.weight(value, "system", 0)
        return 1

    def turn(self, value: object, i: int) -> Turn | None:
        """Returns turn i, or None if it is bad."""
        if not isinstance(value, dict):
            self.wrong(TYPE, f"conversations.{i}", f"turn {i} {value_kind(value)}", expected="an object")
            return None
        who, text = value.get("from"), value.get("value")
        if "from" not in value and "role" in value:
            if all(problem.code != OTHER_FORM.code for _, problem in self.problems):
                self.wrong(OTHER_FORM, f"conversations.{i}.role", f"turn {i} with `role`")
            return None
        if who == "system":
            self.wrong(SYSTEM, f"conversations.{i}.from", f"turn {i} from system")
            return None
        if not isinstance(who, str) or who not in _ROLES:
            self.wrong(FROM, f"conversations.{i}.from", f"turn {i} from {value_kind(who)}")
        if not isinstance(text, str):
            at = f"conversations.{i}.value"
            self.wrong(TYPE, at, f"turn {i} {self.named('value')} {value_kind(text)}", expected="a string")
        elif (
            self.encodable([text], f"turn {i}", f"conversations.{i}.value")
            and isinstance(who, str)
            and who in _ROLES
        ):
            self.words += len(text.split())
            return Turn(_ROLES[who], text, supervised=self.weight(value, _ROLES[who], i))
        return None

    def weight(self, turn: Mapping[str, object], role: Role | Literal["system"], i: int) -> bool:
        """Returns whether turn i is to be learned: its weight is 1, or it has none."""
        given = {key: turn[key] for key in WEIGHTS if turn.get(key) is not None}
        for key, value in given.items():
            if value not in (0, 1):
                shown = str(value) if isinstance(value, int | float) else value_kind(value)
                self.wrong(TURN_WEIGHT, f"conversations.{i}.{key}", f"turn {i} `{key}` {shown}")
            elif value and role != "assistant":
                what = "a question" if role == "user" else "a system prompt"
                self.notes.append(f"`{key}` of {what} is not read")
        return role != "assistant" or all(given.values())

    def order(self, turns: list[Turn]) -> None:
        """Checks that questions and answers alternate and that every question has an answer."""
        if not turns:
            self.wrong(RECORDS_TURNS, "conversations", "no question")
            return
        for i, turn in enumerate(turns):
            if turn.role != ("user", "assistant")[i % 2]:
                at = i + self.before
                self.wrong(ORDER, f"conversations.{at}", f"turn {at} from the {turn.role} again")
                return
            if not turn.text.strip():
                at, code = i + self.before, ANSWER if turn.role == "assistant" else QUESTION
                what = "answer" if turn.role == "assistant" else "question"
                self.wrong(code, f"conversations.{at}", f"turn {at} an empty {what}")
        if turns[-1].role == "user":
            self.wrong(ANSWER, "conversations", "a last question without an answer")
        elif self.template == "plain" and len(turns) != 2:
            self.wrong(RECORDS_PLAIN, "conversations", plural(len(turns), "turn"))

    def place(self, turns: list[Turn], images: int, *, marked: bool) -> list[Turn]:
        """Returns the turns with images in place of the markers.

        If the record has one image, several markers in one turn mean this one image, as in LLaVA. Unless it
        must be `marked`, a record may have no marker at all: its images come before the first question.
        """
        marks = [turn.text.count(MARKER) if turn.role == "user" else 0 for turn in turns]
        if images == 1 and max(marks) > 1:
            marks = [min(mark, 1) for mark in marks]
            self.notes.append(f"several {MARKER} of a question mean its only image")
        if images and not any(marks) and not marked:
            marks[0] = images
            self.notes.append(f"images without {MARKER} are put before the first question")
        for i, turn in enumerate(turns):
            found = [marker for marker in MEDIA_MARKERS if turn.role == "user" and marker in turn.text]
            if found:
                self.wrong(MEDIA, f"conversations.{i + self.before}.value", f"`{found[0]}`")
        if sum(marks) != images:
            at = [i + self.before for i, mark in enumerate(marks) if mark]
            got = f"{plural(images, 'image')} for {sum(marks)} {MARKER} (turns {at})"
            self.wrong(MARKERS, "conversations", got)
        elif images and any(MARKER in turn.text for turn in turns if turn.role == "assistant"):
            self.wrong(MARKERS, "conversations", f"{MARKER} in an answer")
        elif images and MARKER in self.system:
            self.wrong(MARKERS, "system", f"{MARKER} in the system prompt")
        elif self.template == "plain" and not images:
            self.wrong(RECORDS_PLAIN, "image", "no image")
        return [self.placed(turn, mark) for turn, mark in zip(turns, marks, strict=True)]

    def placed(self, turn: Turn, images: int) -> Turn:
        """Returns one turn with its markers removed and `images` images."""
        if turn.role == "assistant":
            return turn
        return Turn("user", "", images) if self.template == "plain" else with_images(turn.text, images)

    def encodable(self, texts: list[str], what: str, key: str) -> bool:
        """Returns whether UTF-8 can encode all of them. Adds a problem if not."""
        for text in texts:
            if not text.isascii() and any("\ud800" <= char <= "\udfff" for char in text):
                self.wrong(TEXT, key, f"a lone surrogate in {what}")
                return False
        return True


def value_kind(value: object) -> str:
    """Describes a JSON value in words."""
    if value is None or isinstance(value, bool):
        return "null" if value is None else str(value).lower()
    if isinstance(value, str):
        return f"{value[:40]!a}"
    names = {dict: "an object", list: "a list", int: "a number", float: "a number"}
    return f"is {names.get(type(value), type(value).__name__)}"
