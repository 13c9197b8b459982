"""One row of a LLaVA records file: what makes it good, and the record it becomes."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import NamedTuple

from lmmkit.data.paths import ImageRoot
from lmmkit.data.strict_json import Row
from lmmkit.errors import did_you_mean
from lmmkit.sample import Role, Turn

MARKER = "<image>"
MAX_CHARS = 1_000_000  # of one conversation; tokenizing takes seconds beyond it
ROLES: dict[str, Role] = {"human": "user", "gpt": "assistant"}
OWN_KEYS = frozenset({"id", "image", "conversations"})

Scalar = str | int | float
Fault = tuple[str, str, str, str]  # code, got, want, mend


class Record(NamedTuple):
    """A checked row: the parts of a `Sample` in little space. `images` are relative paths."""

    key: str
    line: int
    turns: tuple[Turn, ...]
    images: tuple[str, ...]
    meta: dict[str, Scalar] | None


@dataclass(kw_only=True)
class RowReader:
    """Reads one row and collects what is wrong with it; `said` is its id, for messages."""

    root: ImageRoot
    template: str
    faults: list[Fault] = field(default_factory=list)
    said: str = ""
    dropped: int = 0

    def read(self, row: Row) -> Record | None:
        """The record, or None if there are faults."""
        for got, want in row.faults:
            self.wrong("json", got, want, "Mend the row.")
        if self.faults:
            return None
        value = row.value
        if not isinstance(value, dict):
            self.wrong("type", _kind(value), "an object", "Mend the row.")
            return None
        key = self.key(value.get("id"))
        images = self.images(value.get("image"))
        turns = self.turns(value.get("conversations"))
        if turns and not self.faults:
            turns = self.place(turns, len(images))
        meta = {k: v for k, v in value.items() if k not in OWN_KEYS and isinstance(v, str | int | float)}
        self.spelt([*meta, *(v for v in meta.values() if isinstance(v, str))], "another key")
        if self.faults:
            return None
        return Record(key, row.line, tuple(turns), images, meta or None)

    def wrong(self, code: str, got: str, want: str, mend: str) -> None:
        self.faults.append((code, got, want, mend))

    def key(self, value: object) -> str:
        """The row's id as text; empty if it has none."""
        if isinstance(value, bool) or not isinstance(value, str | int | None):
            self.wrong("type", f"`id` {_kind(value)}", "a string or an integer", "Mend the id.")
            return ""
        key = "" if value is None else str(value)
        if self.spelt([key], "`id`") and key:
            self.said = f", id {key[:80]!a}"
        return key

    def images(self, value: object) -> tuple[str, ...]:
        """The row's picture paths."""
        if value is None:
            return ()
        paths: list[str] = []
        for path in value if isinstance(value, list) else [value]:
            if not isinstance(path, str):
                want = "a path or a list of paths"
                self.wrong("type", f"`image` {_kind(path)}", want, "Mend the row.")
                continue
            paths.append(path)
            if self.spelt([path], "`image`") and (fault := self.root.fault(path)):
                self.wrong("path", *fault)
        return tuple(paths)

    def turns(self, value: object) -> list[Turn]:
        """The turns as written, with every marker still in the text."""
        if not isinstance(value, list) or not value:
            got = "none" if value is None or value == [] else _kind(value)
            self.wrong("turns", f"`conversations` {got}", "a list of turns", "Mend the row.")
            return []
        turns = [self.turn(turn, i) for i, turn in enumerate(value)]
        found = [turn for turn in turns if turn is not None]
        if len(found) < len(turns):
            return []
        if found[0].role == "assistant":
            found = found[1:]
            self.dropped = 1
        self.order(found)
        if sum(len(turn.text) for turn in found) > MAX_CHARS:
            self.wrong("long", f"over {MAX_CHARS} characters", "fewer", "Split the conversation.")
        return found

    def turn(self, value: object, i: int) -> Turn | None:
        """Turn i, or None if it is not one."""
        if not isinstance(value, dict):
            self.wrong("type", f"turn {i} {_kind(value)}", "an object", "Mend the turn.")
            return None
        who, text = value.get("from"), value.get("value")
        if not isinstance(who, str) or who not in ROLES:
            hint = did_you_mean(who, ROLES) if isinstance(who, str) else "Known: gpt, human."
            self.wrong("from", f"turn {i} from {_kind(who)}", "`human` or `gpt`", hint)
        if not isinstance(text, str):
            self.wrong("type", f"turn {i} value {_kind(text)}", "a string", "Mend the turn.")
        elif self.spelt([text], f"turn {i}") and isinstance(who, str) and who in ROLES:
            return Turn(ROLES[who], text)
        return None

    def order(self, turns: list[Turn]) -> None:
        """Questions and answers by turns, and nothing left unanswered."""
        if not turns:
            self.wrong("turns", "no question", "a question and an answer", "Remove the row.")
            return
        for i, turn in enumerate(turns):
            if turn.role != ("user", "assistant")[i % 2]:
                at = i + self.dropped
                got = f"turn {at} from the {turn.role} again"
                self.wrong("order", got, "human and gpt by turns", "Join or split the turns.")
                return
            if turn.role == "assistant" and not turn.text.strip():
                got = f"turn {i + self.dropped} an empty answer"
                self.wrong("answer", got, "words to learn", "Remove the turn or the row.")
        if turns[-1].role == "user":
            self.wrong("answer", "a last question without an answer", "one", "Remove the question.")
        elif self.template == "plain" and len(turns) != 2:
            got = f"{len(turns)} turns"
            self.wrong("plain", got, "two for template `plain`", "Use template `vicuna_v1`.")

    def place(self, turns: list[Turn], images: int) -> list[Turn]:
        """The turns with markers taken out and images in front of the text.

        As in LLaVA the markers of one turn mean one image if the row has only one.
        """
        marks = [turn.text.count(MARKER) if turn.role == "user" else 0 for turn in turns]
        if images == 1:
            marks = [min(mark, 1) for mark in marks]
        if sum(marks) != images:
            at = [i + self.dropped for i, mark in enumerate(marks) if mark]
            got = f"{images} images for {sum(marks)} {MARKER} (turns {at})"
            self.wrong("markers", got, f"one {MARKER} an image", "Add or remove markers.")
        elif images and any(MARKER in turn.text for turn in turns if turn.role == "assistant"):
            self.wrong("markers", f"{MARKER} in an answer", "in questions only", "Remove it.")
        elif self.template == "plain" and not images:
            want = "an image for template `plain`"
            self.wrong("plain", "no image", want, "Use template `vicuna_v1`.")
        return [self.placed(turn, mark) for turn, mark in zip(turns, marks, strict=True)]

    def placed(self, turn: Turn, images: int) -> Turn:
        """One turn of `place`."""
        if turn.role == "assistant":
            return turn
        if self.template == "plain":
            return Turn("user", "", images)
        return Turn("user", turn.text.replace(MARKER, "").strip(), images) if images else turn

    def spelt(self, texts: list[str], what: str) -> bool:
        """Whether UTF-8 can spell all of them; a fault if not."""
        for text in texts:
            if not text.isascii() and any("\ud800" <= char <= "\udfff" for char in text):
                want = "characters that UTF-8 can spell"
                self.wrong("text", f"a lone surrogate in {what}", want, "Remove it.")
                return False
        return True


def _kind(value: object) -> str:
    """What a JSON value is, in words."""
    if value is None or isinstance(value, bool):
        return "null" if value is None else str(value).lower()
    if isinstance(value, str):
        return f"{value[:40]!a}"
    names = {dict: "an object", list: "a list", int: "a number", float: "a number"}
    return f"is {names[type(value)]}"
