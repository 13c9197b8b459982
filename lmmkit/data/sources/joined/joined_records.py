"""Reads COCO captions and VQA files as a source: records that are an entry of one list and an entry of another.

The index has the place of both, and that of the image. A record is parsed when it is read, from the bytes of its two
entries.
"""

from __future__ import annotations

import array
import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from lmmkit.data.sources.image_paths import ImageRoot
from lmmkit.data.sources.index_cache import Index
from lmmkit.data.sources.indexed_records import IndexBuilder, Indexing, OpenFiles, as_table
from lmmkit.data.sources.joined.coco_images import CocoFolders, changed_at, path_at
from lmmkit.data.sources.joined.known_files import entry_name
from lmmkit.data.sources.joined.object_lists import read_lists, refused
from lmmkit.data.sources.joined.official_forms import FORMS, OfficialForm, as_id
from lmmkit.data.sources.json_records import RawRecord, parse_record
from lmmkit.data.sources.json_stream import Window
from lmmkit.data.sources.llava_json import ImageNames, JsonRecords
from lmmkit.data.sources.record_parser import value_kind
from lmmkit.data.sources.tables.patterns import json_files
from lmmkit.errors import Tried, raise_together
from lmmkit.errors.data import OFFICIAL_ENTRY

_OTHER = np.dtype([("file", "<u4"), ("offset", "<u8"), ("length", "<u8"), ("image", "<u1")])


@dataclass(frozen=True, kw_only=True, eq=False)
class JoinedRecords(JsonRecords):
    """Reads the good records of official files, by number. The first `asked` files have the records."""

    form: OfficialForm
    asked: int

    def record(self, i: int) -> RawRecord:
        """Reads good record i, in LLaVA's form. Raises `UserError` if a file changed since it was indexed."""
        raw, at = super().record(i), self.index.arrays["others"][i]
        file = int(at["file"])
        other = self.parsed(file, int(at["offset"]), int(at["length"]))
        if not isinstance(raw.value, dict) or not isinstance(other.value, dict):
            return raw  # changed in place: the record parser refuses it
        name = self.form.image(raw.value, other.value, self.index.meta["subsets"][file])
        return self.form.record(raw, raw.value, other.value, path_at(name, int(at["image"])))

    def identity(self) -> dict[str, object]:
        """Returns what distinguishes this data from other data: the contents of the files of records and of the files
        of annotations, if they are others, image names and sizes."""
        contents = self.contents()
        annotations = {"annotations": ", ".join(contents[self.asked :])} if contents[self.asked :] else {}
        return {
            "records": ", ".join(contents[: self.asked]), **annotations, "images": self.names_and_sizes()
        }  # fmt: skip


def open_joined(path: Path, images: Path, indexing: Indexing) -> JoinedRecords:
    """Returns the files of a source of kind `coco` or `vqa` with their index. `path` and the annotations are files or
    patterns.

    Raises `UserError` for bad files or a bad image folder.
    """
    form = FORMS[indexing.official or ""]
    root = Tried(lambda: ImageRoot.open(images))
    names = [each for each in (path, indexing.annotations) if each is not None]
    found = [Tried(lambda name=name: json_files(name)) for name in names]
    raise_together([root, *found])
    files, asked = [each for tried in found for each in tried.value], len(found[0].value)
    folder, opened = root.value.path, OpenFiles(files)
    key = f"{indexing.official} {[os.path.realpath(name) for name in names]} {root.value.real}"

    def build() -> Index:
        made = _Pass(
            form=form, files=files, asked=asked, indexing=indexing, folders=CocoFolders.list(folder),
            builder=IndexBuilder(files, indexing), opened=opened, subsets=[""] * len(files),
        )  # fmt: skip
        return made.index()

    index = indexing.open(key, path, files, build, beside=changed_at(folder))
    return JoinedRecords(path=path, files=opened, index=index, root=root.value, form=form, asked=asked)


@dataclass(kw_only=True)
class _Pass:
    """Makes a pass over each list of each file. `places`: where the entry of each id of `given` is. `used`: the ids
    that records name. `before`: the entries of `asked` in the files before. `done`: the bytes of the passes before."""

    form: OfficialForm
    files: Sequence[Path]
    asked: int
    indexing: Indexing
    folders: CocoFolders
    builder: IndexBuilder
    opened: OpenFiles
    subsets: list[str]
    names: ImageNames = field(default_factory=ImageNames)
    places: dict[str, tuple[int, int, int]] = field(default_factory=dict)
    used: set[str] = field(default_factory=set)
    others: tuple[array.array, ...] = field(
        default_factory=lambda: tuple(array.array(code) for code in "IQQB")
    )
    before: int = 0
    done: int = 0

    def index(self) -> Index:
        asked, given = range(self.asked), range(self.asked, len(self.files))
        groups = [((k,), (k,)) for k in asked] if self.form.together else [(asked, given)]
        looks = [(k, self.form.asked) for k in asked] + [(k, self.form.given) for _, g in groups for k in g]
        raise_together([Tried(lambda look=look: self.look(*look)) for look in looks])
        spare = 0
        for with_asked, with_given in groups:
            self.places, self.used = {}, set()
            for k in with_given:
                self.read_given(k)
            for k in with_asked:
                self.read_asked(k)
            spare += len(self.places.keys() - self.used)
        if spare:
            self.builder.notes[
                f"an entry of `{self.form.given}` that no entry of `{self.form.asked}` names is not used"
            ] = spare
        arrays = {**self.names.arrays(), "others": as_table(_OTHER, self.others)}
        return self.builder.index({**self.names.meta(), "subsets": self.subsets}, arrays)

    def look(self, file: int, name: str) -> None:
        """Raises `UserError` for a file without this list, or with the list of another data set."""
        expected, path = self.form.expected[name], self.files[file]
        with Window(path) as window:
            for key, raw in read_lists(window, name, expected):
                if key == name:
                    other = isinstance(raw.value, dict) and self.form.needed[name] not in raw.value
                    if other and (found := entry_name(raw.value)):
                        raise refused(path, f"{found} under `{name}`", expected)
                    return

    def read_given(self, file: int) -> None:
        """Makes the pass over the list `given` of a file."""
        name = self.form.given
        with Window(self.files[file], self.progress) as window:
            for key, raw in read_lists(window, name, self.form.expected[name]):
                if key == name:
                    self.give(raw, file)
                elif raw.faults and not self.form.together:
                    self.builder.add(raw, file)
                elif key == "data_subtype" and isinstance(raw.value, str):
                    self.subsets[file] = raw.value
        self.done += window.size

    def read_asked(self, file: int) -> None:
        """Makes the pass over the list `asked` of a file."""
        name, count = self.form.asked, 0
        with Window(self.files[file], self.progress) as window:
            for key, raw in read_lists(window, name, self.form.expected[name]):
                if key == name:
                    self.ask(raw, file)
                    count += 1
                elif raw.faults and not (self.form.together and key == self.form.given):
                    self.builder.add(raw, file)
        self.before += count
        self.done += window.size

    def progress(self, done: int) -> None:
        """Moves the bar, whose total is the bytes of all files, each counted once."""
        self.indexing.progress((self.done + done) // (2 if self.form.together else 1))

    def give(self, raw: RawRecord, file: int) -> None:
        """Adds the place of an entry of `given`."""
        if raw.faults or not isinstance(raw.value, dict):
            self.builder.add(raw, file)
            return
        value = raw.value.get(self.form.id_)
        id_ = as_id(value)
        if id_ is None or id_ in self.places:
            got = f"`{self.form.id_}` {_shown(value)}{' twice' * (id_ in self.places)}"
            problem = OFFICIAL_ENTRY.at("", got=got, expected="an integer or a text, each once")
            part = f"{self.form.given}.{raw.index}.{self.form.id_}"
            self.builder.refuse(raw, [(part, problem)], file, "")
            return
        self.places[id_] = file, raw.offset, raw.length

    def ask(self, raw: RawRecord, file: int) -> None:
        """Adds the record of an entry of `asked`. It has the number of the record in all files."""
        number = self.before + raw.index
        if raw.faults or not isinstance(raw.value, dict):
            self.builder.add(raw._replace(index=number), file)
            return
        link = raw.value.get(self.form.link)
        id_ = as_id(link)
        if id_ is None or (place := self.places.get(id_)) is None:
            expected = f"the `{self.form.id_}` of an entry of `{self.form.given}`"
            problem = OFFICIAL_ENTRY.at("", got=f"`{self.form.link}` {_shown(link)}", expected=expected)
            part = f"{self.form.asked}.{raw.index}.{self.form.link}"
            self.builder.refuse(raw._replace(index=number), [(part, problem)], file, "")
            return
        self.used.add(id_)
        data, _ = self.opened.read(*place)
        other = parse_record(data, 0, 0).value
        assert isinstance(other, dict)
        name = self.form.image(raw.value, other, self.subsets[place[0]])
        image = self.folders.place(name)
        found = self.form.record(raw, raw.value, other, path_at(name, image))
        no_surrogates = raw.no_surrogates and b"\\u" not in data
        size = self.builder.add(found._replace(index=number, no_surrogates=no_surrogates), file)
        if size is not None:
            self.names.add(size.images, len(self.builder) - 1)
            for column, value in zip(self.others, (*place, image), strict=True):
                column.append(value)


def _shown(id_: object) -> str:
    return str(id_) if type(id_) is int else value_kind(id_)
