"""Reads records of kind `messages`: OpenAI's lists of content parts, and ShareGPT's turns with `<image>` in the text.

    {"messages": [
        {"role": "user", "content": [{"type": "image", "image": "a/17.jpg"}, {"type": "text", "text": "What is it?"}]},
        {"role": "assistant", "content": "A cat."}]}

`as_llava` writes a record in LLaVA's form, turn for turn, and `record_parser.py` checks what it wrote.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from lmmkit.data.image_files.data_addresses import address_bytes, is_address, mark_of
from lmmkit.data.image_files.image_file import MAX_BYTES
from lmmkit.data.image_markers import MARKER
from lmmkit.data.sources.image_paths import path_fault
from lmmkit.data.sources.json_records import RawRecord
from lmmkit.data.sources.record_keys import OWN_KEYS
from lmmkit.data.sources.record_parser import value_kind
from lmmkit.errors import Code, Problem
from lmmkit.errors.data import (
    DATA_ADDRESS,
    MARKERS,
    MEDIA,
    MESSAGE_COLUMN,
    MESSAGE_PART,
    MESSAGE_ROLE,
    RECORDS_IMAGES,
    RECORDS_TURNS,
    TYPE,
)
from lmmkit.progress import plural

# The columns of a record, each with the names that it has without a mapping.
COLUMNS = {
    "messages": ("messages", "conversations"),
    "images": ("images", "image"),
    "system": ("system",),
    "id": ("id",),
}
ROLES = {"user": "human", "human": "human", "assistant": "gpt", "gpt": "gpt", "system": "system"}
_IMAGE_PARTS = ("image", "image_url")
_IMAGE_KEYS = ("image", "image_url", "url", "path")
_MEDIA_PARTS = ("video", "video_url", "audio", "audio_url", "input_audio")
_SHOWN = 10  # columns that a message lists


def column_of(names: Iterable[str], columns: Mapping[str, str], part: str) -> str | Problem | None:
    """Returns which of `names` is the column for `part`; None if there is none.

    A `Problem` if a record may not do without it, or if it is not clear which one is meant.
    """
    names = list(names)
    known = (columns[part],) if part in columns else COLUMNS[part]
    found = [name for name in known if name in names]
    if len(found) > 1:
        expected = f"one of them; `columns: {{{part}: NAME}}` names it"
        return MESSAGE_COLUMN.at("", got=" and ".join(f"`{name}`" for name in found), expected=expected)
    if not found and part == "messages":
        listed = ", ".join(f"`{name[:40]}`" for name in names[:_SHOWN]) + ", ..." * (len(names) > _SHOWN)
        expected = " or ".join(f"`{name}`" for name in known)
        return MESSAGE_COLUMN.at("", got=f"the columns {listed}" if names else "no column", expected=expected)
    return found[0] if found else None


def as_llava(raw: RawRecord, columns: Mapping[str, str]) -> RawRecord:
    """Returns the record in LLaVA's form. What has no such form becomes a problem of the record."""
    if raw.faults or not isinstance(raw.value, dict):
        return raw
    return _Form(columns).read(raw)


def without_files(raw: RawRecord) -> RawRecord:
    """Returns a record in LLaVA's form of a source without a folder of images: with a problem if it names a file."""
    if not isinstance(raw.value, dict) or raw.problems:
        return raw
    paths = [raw.value["image"]] if "image" in raw.value else raw.value.get("images", ())
    files = [
        path for path in paths if isinstance(path, str) and path not in raw.inside and not path_fault(path)
    ]
    if not files:
        return raw
    problem = RECORDS_IMAGES.at("", got=f"path {files[0][:80]!a} in a source without `images`")
    return raw._replace(problems=(("images", problem),))


@dataclass
class _Form:
    """Converts one record and collects its problems, each with the part of the record."""

    columns: Mapping[str, str]
    problems: list[tuple[str, Problem]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    given: list[object] = field(default_factory=list)  # images of the record's own column
    used: set[int] = field(default_factory=set)  # those of them that have a place
    placed: list[object] = field(default_factory=list)  # images in the order of their places
    inside: set[str] = field(default_factory=set)  # the marks of those that the record contains

    def read(self, raw: RawRecord) -> RawRecord:
        record = {key: value for key, value in raw.value.items() if value is not None}  # type: ignore[attr-defined]
        names: dict[str, str] = {}
        for part in COLUMNS:
            found = column_of(record, self.columns, part)
            if isinstance(found, Problem):
                self.problems.append(("", found))
            elif found is not None:
                names[part] = found
            elif part in self.columns and self.columns[part] not in raw.value:  # type: ignore[operator]
                self.notes.append(f"no column `{self.columns[part][:40]}`, which `columns` names")
        messages = record[names["messages"]] if "messages" in names else []
        if self.problems or not isinstance(messages, list):
            if not self.problems:
                self.wrong(RECORDS_TURNS, names["messages"], f"`{names['messages']}` {value_kind(messages)}")
            return raw._replace(problems=tuple(self.problems))
        images = record[names["images"]] if "images" in names else []
        images = images if isinstance(images, list) else [images]
        self.given = [self.named(image, "images", names.get("images", "")) for image in images]
        turns = self.turns(messages, names["messages"])
        value = {
            key: each for key, each in record.items() if key not in names.values() and key not in OWN_KEYS
        }
        for key in record:
            if key in OWN_KEYS and key not in names.values():
                self.notes.append(f"`{key}` is not read: `columns` names another one")
        value |= {part: record[name] for part, name in names.items() if part in ("id", "system")}
        if self.placed:
            marked = (
                len(self.placed) == 1
                and isinstance(self.placed[0], str)
                and any(isinstance(turn, dict) and MARKER in str(turn.get("value")) for turn in turns)
            )
            value |= {"image": self.placed[0]} if marked else {"images": self.placed}
        first = messages[0] if messages and isinstance(messages[0], dict) else {}
        parts = {
            "conversations": names["messages"], "images": names.get("images", "images"),
            "image": names.get("images", "images"), "from": "role" if "role" in first else "from",
            "value": "content" if "content" in first else "value",
        }  # fmt: skip
        return raw._replace(
            value=value | {"conversations": turns}, problems=tuple(self.problems), notes=tuple(self.notes),
            names=parts, inside=frozenset(self.inside),
        )  # fmt: skip

    def turns(self, messages: list[object], name: str) -> list[object]:
        """Returns the turns, each with its text as one string in which markers stand for images."""
        contents = [each for turn in messages if isinstance(turn, dict) for each in turn.values()]
        listed = any(
            isinstance(part, dict) and part.get("type") in _IMAGE_PARTS
            for content in contents if isinstance(content, list) for part in content
        )  # fmt: skip
        if not listed:
            self.placed = self.given
        turns = [self.turn(turn, f"{name}.{i}", i, listed) for i, turn in enumerate(messages)]
        if listed and not self.problems and len(self.used) < len(self.given):
            without = len(self.given) - len(self.used)
            got = f"{plural(len(self.given), 'image')}, of which {without} without a place in the content"
            self.wrong(MARKERS, name, got)
        return turns

    def turn(self, turn: object, at: str, i: int, listed: bool) -> object:
        """Returns one turn in LLaVA's form; one that is no object as it is."""
        if not isinstance(turn, dict):
            return turn
        given = {key: value for key, value in turn.items() if value is not None}
        for one, other in (("role", "from"), ("content", "value")):
            if one in given and other in given:
                self.wrong(MESSAGE_COLUMN, at, f"`{one}` and `{other}`", expected="one of them")
        key = "role" if "role" in given else "from"
        who, role = given.pop(key, None), None
        if isinstance(who, str):
            role = ROLES.get(who)
        if role is None:
            self.wrong(MESSAGE_ROLE, f"{at}.{key}", f"turn {i} with the {key} {value_kind(who)}")
        content = given.pop("content" if "content" in given else "value", None)
        if isinstance(content, list):
            texts = [self.part(part, f"{at}.content.{n}", role, listed) for n, part in enumerate(content)]
            content = "".join(texts)
        elif listed and role == "human" and isinstance(content, str):
            for _ in range(content.count(MARKER)):
                self.take({}, at)
        return {"from": role, "value": content, **given}

    def part(self, part: object, at: str, role: str | None, listed: bool) -> str:
        """Returns the text of one content part: its own, or a marker for its image."""
        if isinstance(part, str):
            part = {"type": "text", "text": part}
        if not isinstance(part, dict):
            self.wrong(TYPE, at, f"a content part {value_kind(part)}", expected="an object")
            return ""
        given: dict[str, object] = {key: value for key, value in part.items() if value is not None}
        kind = given.pop("type", None)
        if kind in _IMAGE_PARTS:
            if role != "human":
                self.wrong(MARKERS, at, "an image in a turn that is no question")
                return ""
            self.take(given, at)
            return MARKER
        if kind != "text":
            media = kind in _MEDIA_PARTS
            self.wrong(
                MEDIA if media else MESSAGE_PART, f"{at}.type", f"a content part of type {value_kind(kind)}"
            )
            return ""
        text = given.pop("text", None)
        self.unread(given)
        if not isinstance(text, str):
            self.wrong(TYPE, f"{at}.text", f"a text {value_kind(text)}", expected="a string")
            return ""
        if listed and role == "human" and MARKER in text:
            self.wrong(
                MARKERS, f"{at}.text", f"{MARKER} in the text of a record whose images are content parts"
            )
        return text

    def take(self, given: dict[str, object], at: str) -> None:
        """Adds the image of a content part: the one that it names, or one of the record's own column."""
        own = [given.pop(key) for key in _IMAGE_KEYS if key in given]
        if own:
            url = own[0]
            if isinstance(url, dict):
                rest = {key: value for key, value in url.items() if value is not None}
                url = rest.pop("url" if "url" in rest else "path", None)
                self.unread(rest)
            if len(own) > 1 or not isinstance(url, str):
                got = "several images" if len(own) > 1 else f"an image {value_kind(url)}"
                self.wrong(MESSAGE_PART, at, got)
            self.placed.append(self.named(url, "messages", at))
        else:
            index = given.pop("index", None)
            next_one = max(self.used, default=-1) + 1
            number = next_one if index is None else index
            if type(number) is not int or not 0 <= number < len(self.given):
                got = f"an image part for image {value_kind(number) if type(number) is not int else number}"
                self.wrong(MARKERS, at, f"{got} of {len(self.given)} images of the record")
                return
            self.used.add(number)
            self.placed.append(self.given[number])
        self.unread(given)

    def named(self, image: object, part: str, at: str) -> object:
        """Returns the name of an image: its path, or the mark of a `data:` address."""
        if not is_address(image):
            return image
        try:
            address_bytes(image, MAX_BYTES)
        except ValueError as error:
            self.wrong(DATA_ADDRESS, at, f"{image[:40]!a}, {error}")
        self.inside.add(mark := mark_of(part, image))
        return mark

    def unread(self, given: Mapping[str, object]) -> None:
        """Notes the keys of a content part that nothing reads."""
        self.notes += [
            f"`{key[:40]}` of a content part is not read" for key in given if given[key] is not None
        ]

    def wrong(self, code: Code, part: str, got: str, **fields: object) -> None:
        """Adds a problem of the part `part` of the record."""
        self.problems.append((part, code.at("", got=got, **fields)))
