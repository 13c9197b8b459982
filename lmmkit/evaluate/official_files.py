"""Reads the official files of benchmarks as they were published, and collects everything that is wrong with them."""

from __future__ import annotations

import hashlib
import json
import os
from collections import defaultdict
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence, Sized
from contextlib import suppress
from pathlib import Path
from typing import Any

from lmmkit.data.sources.image_paths import is_plain, path_fault
from lmmkit.data.sources.json_stream import Parser, skip
from lmmkit.errors import Code, MachineError, Problem, UserError, did_you_mean, raise_all
from lmmkit.errors.benchmarks import (
    ABSENT_IMAGES,
    LFS_POINTER,
    NO_OFFICIAL_FILE,
    OFFICIAL_DUPLICATE,
    OFFICIAL_JSON,
    OFFICIAL_RECORD,
    OFFICIAL_VERSION,
    UNKNOWN_SPLIT,
    UPLOAD_ANSWERS,
)
from lmmkit.progress import counted
from lmmkit.runs.files import unwritable

HUMANS = 10  # answers to each question of VQAv2, TextVQA and VizWiz
MOST_NAMED = 8  # problems of one kind in one file, or names in one problem, before only their number is given
# how the formats of images begin, which tables contain
_IMAGE_STARTS = {
    b"\xff\xd8\xff": ".jpg",
    b"\x89PNG\r\n": ".png",
    b"GIF8": ".gif",
    b"RIFF": ".webp",
    b"BM": ".bmp",
}
_POINTERS = (b"version https://git-lfs.github.com/spec/", b"/annex/objects/")
_BROKEN = object()  # the value of a text that is no JSON
_LISTED = 32  # images of one folder from which on its listing is read instead of asking for each

Spec = Mapping[str, type | tuple[type, ...]]


class OfficialFiles:
    """Reads files below the folder of one benchmark and collects their problems; `check` raises them together.

    A method that finds a problem notes it and returns an empty value, so that a loader can go on to the next
    file and report everything at once.

    Args:
        folder: the benchmark's folder.
        split: the split to read.
        splits: those that the benchmark has.
    """

    def __init__(self, folder: Path, *, split: str, splits: Sequence[str]):
        if split not in splits:
            problem = UNKNOWN_SPLIT.at(
                "--split", got=f"`{split}`", known=", ".join(splits), nearest=did_you_mean(split, splits)
            )
            raise UserError(problem)
        self.folder = folder
        self._problems: dict[tuple[Code, str], list[Problem]] = defaultdict(list)
        if not folder.is_dir():
            self.note(NO_OFFICIAL_FILE, folder, got="no such folder", expected="the folder of the benchmark")

    def note(self, code: Code, path: Path, place: str = "", *, got: str, **fields: object) -> None:
        """Notes a problem of a file, at a place in it such as "questions[3]"."""
        where = f"{path}: {place}" if place else str(path)
        self._problems[code, str(path)].append(code.at(where, got=got, **fields))

    def check(self) -> None:
        """Raises `UserError` if there are problems: all of them, or the first of each kind and their number."""
        problems = []
        for (code, path), several in self._problems.items():
            problems += several[:MOST_NAMED]
            if len(several) > MOST_NAMED:
                more = f"{len(several) - MOST_NAMED:,} more problems of this kind, {len(several):,} in all"
                problems.append(Problem(code.code, path, more, several[0].expected, several[0].hint))
        raise_all(problems)

    def find(self, name: str, *, under: Sequence[str] = ("",)) -> Path | None:
        """Returns the path of a file, in the first folder of `under` that has it."""
        return self._first([self.folder / folder / name for folder in under], Path.is_file, "the file")

    def find_folder(self, *names: str) -> Path | None:
        """Returns the path of the first folder of these names that exists."""
        return self._first([self.folder / name for name in names], Path.is_dir, "the folder")

    def text(self, path: Path | None) -> str:
        """Returns the text of a file."""
        if path is None:
            return ""
        try:
            data = path.read_bytes()
        except OSError as error:
            got = error.strerror or str(error)
            self.note(NO_OFFICIAL_FILE, path, got=got, expected="a file that can be read")
            return ""
        if pointer(data):
            self.note(LFS_POINTER, path, got=f"a pointer of {len(data)} bytes")
            return ""
        try:
            return data.decode("utf-8-sig")
        except UnicodeDecodeError as error:
            got = f"byte 0x{data[error.start]:02x} at offset {error.start}, which is no UTF-8"
            self.note(OFFICIAL_JSON, path, got=got, expected="text in UTF-8")
            return ""

    def json(self, path: Path | None) -> Any:
        """Returns the value of a JSON file."""
        text = self.text(path)
        value = self._value(path, "", text) if path is not None and text else None
        return None if value is _BROKEN else value

    def json_lines(self, path: Path | None) -> list[Any]:
        """Returns the values of a file with one JSON value on each line."""
        found = []
        # str.splitlines() also divides at U+2028, which is allowed inside a JSON string
        if path is None:
            return found
        for number, line in enumerate(counted(f"reading {path.name}", self.text(path).split("\n")), 1):
            if line.strip():
                found.append(self._value(path, f"line {number}", line))
        return [value for value in found if value is not _BROKEN]

    def records(
        self, path: Path | None, values: Any, spec: Spec, *, at: str = "", key: str | None = None
    ) -> list[dict[str, Any]]:
        """Returns the sound records of a list.

        Args:
            path: the file that they come from.
            values: the list.
            spec: the keys that each record needs, with the type of each value.
            at: where in the file the list is, for messages.
            key: the key with the record's id, which must be unique.
        """
        if path is None or values is None:
            return []
        if not isinstance(values, list):
            self.note(OFFICIAL_RECORD, path, at, got=kind_of(values), expected="a list of records")
            return []
        self._check_some(path, at, values)
        numbered = enumerate(counted(f"checking {path.name}", values))
        sound = [r for i, r in numbered if self.sound(path, f"{at}[{i}]", r, spec)]
        if key is not None:
            self.unique(path, key, [record[key] for record in sound])
        return sound

    def table(self, path: Path | None, values: Any, spec: Spec) -> dict[str, dict[str, Any]]:
        """Returns the sound records of an object of records, by id."""
        if path is None or values is None:
            return {}
        if not isinstance(values, dict):
            self.note(OFFICIAL_RECORD, path, got=kind_of(values), expected="an object of records by id")
            return {}
        self._check_some(path, "", values)
        return {key: r for key, r in values.items() if self.sound(path, f"`{key}`", r, spec)}

    def sound(self, path: Path, place: str, record: Any, spec: Spec) -> bool:
        """Returns whether the record has the keys of `spec` with values of these types; notes it if not."""
        if not isinstance(record, dict):
            self.note(OFFICIAL_RECORD, path, place, got=kind_of(record), expected="an object")
            return False
        for name, types in spec.items():
            types = types if isinstance(types, tuple) else (types,)
            if type(record.get(name)) not in types or name not in record:
                got = f"`{name}`: {kind_of(record[name])}" if name in record else f"no key `{name}`"
                names = " or ".join(_NAMES[each] for each in types)
                self.note(OFFICIAL_RECORD, path, place, got=got, expected=f"`{name}`: {names}")
                return False
        return True

    def human_answers(self, path: Path, place: str, answers: Sequence[Any]) -> list[str]:
        """Returns the ten answers as texts, from records with a key `answer` or from texts."""
        texts = [answer.get("answer") if isinstance(answer, dict) else answer for answer in answers]
        if len(texts) != HUMANS or not all(isinstance(text, str) for text in texts):
            sound = sum(isinstance(text, str) for text in texts)
            self.note(
                OFFICIAL_RECORD,
                path,
                place,
                got=f"{sound} answers",
                expected=f"{HUMANS} answers that are texts",
            )
        return [text for text in texts if isinstance(text, str)]

    def unique(self, path: Path, key: str, ids: Iterable[Hashable]) -> None:
        """Notes each id that occurs twice."""
        seen = set()
        for each in ids:
            if each in seen:
                self.note(OFFICIAL_DUPLICATE, path, got=f"{key} {each!r} twice")
            seen.add(each)

    def same_ids(
        self, path: Path | None, ids: Iterable[Hashable], expected: Iterable[Hashable], of: str
    ) -> None:
        """Notes ids that one file has and the other, `of`, lacks: they are of different splits or versions."""
        if path is None:
            return
        ids, expected = dict.fromkeys(ids), dict.fromkeys(expected)
        for missing, got in (
            ([i for i in expected if i not in ids], "no record for"),
            ([i for i in ids if i not in expected], "records without a question:"),
        ):
            if missing:
                self.note(OFFICIAL_VERSION, path, got=f"{got} {named(missing)}", expected=f"the ids of {of}")

    def images(self, folder: Path | None, names: Sequence[str]) -> list[str]:
        """Returns the paths of images in `folder`, for names that may contain folders."""
        if folder is None:
            return [""] * len(names)
        listed: dict[str, list[str]] = defaultdict(list)
        for name in dict.fromkeys(names):
            fault = None if is_plain(name) else path_fault(name)
            if fault is not None:
                self.note(ABSENT_IMAGES, folder, got=fault)
            else:
                listed[os.path.dirname(name)].append(name)
        absent = {name for below, several in listed.items() for name in _absent(folder, below, several)}
        if absent:
            in_order = [name for name in dict.fromkeys(names) if name in absent]
            self.note(ABSENT_IMAGES, folder, got=f"no {named(in_order)}")
        self._check_pointer(folder, next((name for name in names if name not in absent), None))
        return [os.path.join(folder, name) for name in names]

    def _check_some(self, path: Path, at: str, values: Sized) -> None:
        """Notes if a file has no records, unless a problem of the file explains it."""
        if not len(values) and all(place != str(path) for _, place in self._problems):
            self.note(OFFICIAL_RECORD, path, at, got="no records", expected="the records of the split")

    def _check_pointer(self, folder: Path, name: str | None) -> None:
        """Notes if the first image is a pointer: those of one archive are all data, or none is."""
        if name is None or (not is_plain(name) and path_fault(name) is not None):
            return
        try:
            with open(folder / name, "rb") as file:
                data = file.read(128)
        except OSError as error:
            self.note(ABSENT_IMAGES, folder / name, got=error.strerror or str(error))
            return
        if pointer(data):
            self.note(LFS_POINTER, folder / name, got="a pointer in place of an image")

    def _first(self, paths: Sequence[Path], exists: Callable[[Path], bool], kind: str) -> Path | None:
        for path in paths:
            if exists(path):
                return path
        if self.folder.is_dir():
            expected = " or ".join(str(path.relative_to(self.folder)) for path in paths)
            got = "no such file" if kind == "the file" else "no such folder"
            self.note(NO_OFFICIAL_FILE, paths[0], got=got, expected=f"{kind} {expected} below {self.folder}")
        return None

    def _value(self, path: Path, place: str, text: str) -> Any:
        try:
            value, end, faults = Parser().at(text, skip(text, 0))
        except json.JSONDecodeError as error:
            at = place or f"line {error.lineno}, column {error.colno}"
            self.note(OFFICIAL_JSON, path, at, got=f"{error.msg}: {text[:40]!a}", expected="JSON")
            return _BROKEN
        for got, expected in faults:
            code = OFFICIAL_DUPLICATE if expected == "each key once" else OFFICIAL_JSON
            self.note(code, path, place, got=got, expected=expected)
        if skip(text, end) != len(text):
            self.note(OFFICIAL_JSON, path, place, got="more text after the value", expected="one JSON value")
        return value


def pointer(data: bytes) -> bool:
    """Returns whether these are the first bytes of a pointer of Git LFS or git-annex."""
    return data.startswith(_POINTERS)


def named(several: Sequence[object]) -> str:
    """Returns the first of `several` and their number: "12 of them: a, b, ..."."""
    shown = ", ".join(str(each) for each in several[:MOST_NAMED])
    return f"{shown} and {len(several) - MOST_NAMED:,} more" if len(several) > MOST_NAMED else shown


def kind_of(value: object) -> str:
    """Returns the JSON type of a value, in words."""
    return _NAMES.get(type(value), type(value).__name__)


def upload_problems(where: str, asked: Iterable[str], answered: Iterable[str]) -> Iterator[Problem]:
    """Yields problems if the ids of the answers are not those of the questions."""
    asked, answered = dict.fromkeys(asked), dict.fromkeys(answered)
    if missing := [i for i in asked if i not in answered]:
        yield UPLOAD_ANSWERS.at(
            where, got=f"no answer to {named(missing)}", expected="an answer to each question"
        )
    if extra := [i for i in answered if i not in asked]:
        yield UPLOAD_ANSWERS.at(where, got=f"answers to {named(extra)}", expected="ids of the split")


def write_image_once(folder: Path, data: bytes) -> Path | None:
    """Returns the file in `folder` with these bytes, named by their hash; None if they are no image.

    A file is complete as soon as it has its name, so one that exists is not written again. Raises `MachineError` if
    the file system refuses.
    """
    suffix = next((suffix for start, suffix in _IMAGE_STARTS.items() if data.startswith(start)), None)
    if suffix is None:
        return None
    path = folder / f"{hashlib.sha256(data).hexdigest()[:32]}{suffix}"
    temporary = folder / f".{path.name}.{os.getpid()}.tmp"
    try:
        if not path.exists():
            folder.mkdir(parents=True, exist_ok=True)
            temporary.write_bytes(data)
            os.replace(temporary, path)
    except OSError as error:
        with suppress(OSError):
            temporary.unlink()
        raise MachineError(unwritable(path, error)) from error
    return path


def _absent(folder: Path, below: str, names: Sequence[str]) -> list[str]:
    """Returns the names of images that are not in the folder `below`."""
    if len(names) < _LISTED:
        return [name for name in names if not os.path.isfile(os.path.join(folder, name))]
    try:
        with os.scandir(os.path.join(folder, below)) as entries:
            files = {os.path.join(below, entry.name) for entry in entries if entry.is_file()}
    except OSError:
        files = set()
    return [name for name in names if name not in files]


_NAMES: Mapping[type, str] = {
    str: "a text",
    int: "an integer",
    float: "a number",
    bool: "true or false",
    list: "a list",
    dict: "an object",
    type(None): "null",
}
