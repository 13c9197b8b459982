"""Reads COCO captions and VQA files as a source: records that are an entry of one list and an entry of another.

The index has the place of both. A record is parsed when it is read, from the bytes of its two entries.
"""

from __future__ import annotations

import array
import os
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from lmmkit.data.sources.image_paths import ImageRoot
from lmmkit.data.sources.index_cache import Index
from lmmkit.data.sources.indexed_records import IndexBuilder, Indexing, OpenFiles, as_table
from lmmkit.data.sources.joined.object_lists import read_lists
from lmmkit.data.sources.joined.official_forms import CocoCaptions, OfficialForm, VqaQuestions
from lmmkit.data.sources.json_records import RawRecord, parse_record
from lmmkit.data.sources.json_stream import Window, open_regular
from lmmkit.data.sources.llava_json import ImageNames, JsonRecords
from lmmkit.data.sources.record_parser import value_kind
from lmmkit.errors.data import OFFICIAL_ENTRY

_PLACE = np.dtype([("offset", "<u8"), ("length", "<u8")])


@dataclass(frozen=True, kw_only=True, eq=False)
class JoinedRecords(JsonRecords):
    """Reads the good records of an official file, by number."""

    form: OfficialForm

    def record(self, i: int) -> RawRecord:
        """Reads good record i, in LLaVA's form. Raises `UserError` if a file changed since it was indexed."""
        raw, at = super().record(i), self.index.arrays["others"][i]
        other = self.parsed(len(self.files.paths) - 1, int(at["offset"]), int(at["length"]))
        if not isinstance(raw.value, dict) or not isinstance(other.value, dict):
            return raw  # changed in place: the record parser refuses it
        return self.form.record(raw, raw.value, other.value, self.index.meta["subset"])


def open_joined(path: Path, images: Path, indexing: Indexing) -> JoinedRecords:
    """Returns the files of a source of kind `coco` or `vqa` with their index.

    Raises `UserError` for a bad file or image folder.
    """
    root = ImageRoot.open(images)
    form = CocoCaptions((path, path))
    if indexing.annotations is not None:
        form = VqaQuestions((path, indexing.annotations))
    files = list(dict.fromkeys(form.files))
    for each in files:
        with open_regular(each):  # raises a clear error if it cannot be read
            pass
    key = f"{indexing.official} {os.path.realpath(form.files[1])}"
    index = indexing.open(key, path, files, lambda: _Pass(form, files, indexing).index())
    return JoinedRecords(path=path, files=OpenFiles(files), index=index, root=root, form=form)


@dataclass
class _Pass:
    """Makes a pass over each of the two lists. `places`: where the entry of each id of `given` is. `used`: the ids
    that records name."""

    form: OfficialForm
    files: list[Path]
    indexing: Indexing
    subset: str = ""
    places: dict[object, tuple[int, int]] = field(default_factory=dict)
    used: set[object] = field(default_factory=set)
    others: tuple[array.array, array.array] = field(
        default_factory=lambda: (array.array("Q"), array.array("Q"))
    )

    def index(self) -> Index:
        builder, names, opened = IndexBuilder(self.files, self.indexing), ImageNames(), OpenFiles(self.files)
        asked, given = self.form.files
        one, size = asked == given, given.stat().st_size
        with Window(given, lambda done: self.progress(done)) as window:
            for key, raw in read_lists(window, self.form.given):
                if key == self.form.given:
                    self.give(raw, builder)
                elif key == "data_subtype" and isinstance(raw.value, str):
                    self.subset = raw.value
                elif raw.faults and not one:
                    builder.add(raw, 1)
        with Window(asked, lambda done: self.progress(size + done)) as window:
            for key, raw in read_lists(window, self.form.asked):
                if key == self.form.asked:
                    self.ask(raw, builder, names, opened)
                elif raw.faults and not (one and key == self.form.given):
                    builder.add(raw, 0)
        if spare := len(self.places.keys() - self.used):
            builder.notes[
                f"an entry of `{self.form.given}` that no entry of `{self.form.asked}` names is not used"
            ] = spare
        meta = {"images": len(names.known), "folders": list(names.folders), "subset": self.subset}
        return builder.index(meta, {**names.arrays(), "others": as_table(_PLACE, self.others)})

    def progress(self, done: int) -> None:
        """Moves the bar, whose total is the bytes of all files, each counted once."""
        self.indexing.progress(done * len(self.files) // 2)

    def give(self, raw: RawRecord, builder: IndexBuilder) -> None:
        """Adds the place of an entry of `given`."""
        id_ = raw.value.get(self.form.id_) if isinstance(raw.value, dict) else None
        if raw.faults or not isinstance(raw.value, dict):
            builder.add(raw, len(self.files) - 1)
        elif (twice := type(id_) in (int, str) and id_ in self.places) or type(id_) not in (int, str):
            got = f"`{self.form.id_}` {value_kind(id_) if type(id_) is not int else id_}{' twice' * twice}"
            problem = OFFICIAL_ENTRY.at("", got=got, expected="an integer or a text, each once")
            part = f"{self.form.given}.{raw.index}.{self.form.id_}"
            builder.refuse(raw, [(part, problem)], len(self.files) - 1, "")
        else:
            self.places[id_] = raw.offset, raw.length

    def ask(self, raw: RawRecord, builder: IndexBuilder, names: ImageNames, opened: OpenFiles) -> None:
        """Adds the record of an entry of `asked`."""
        if raw.faults or not isinstance(raw.value, dict):
            builder.add(raw, 0)
            return
        link = raw.value.get(self.form.link)
        place = self.places.get(link) if type(link) in (int, str) else None
        if place is None:
            expected = f"the `{self.form.id_}` of an entry of `{self.form.given}`"
            shown = link if type(link) is int else value_kind(link)
            problem = OFFICIAL_ENTRY.at("", got=f"`{self.form.link}` {shown}", expected=expected)
            builder.refuse(raw, [(f"{self.form.asked}.{raw.index}.{self.form.link}", problem)], 0, "")
            return
        self.used.add(link)
        data, _ = opened.read(len(self.files) - 1, *place)
        other = parse_record(data, 0, 0).value
        assert isinstance(other, dict)
        found = self.form.record(raw, raw.value, other, self.subset)
        size = builder.add(found._replace(no_surrogates=raw.no_surrogates and b"\\u" not in data), 0)
        if size is not None:
            names.add(size.images, len(builder) - 1)
            for column, value in zip(self.others, place, strict=True):
                column.append(value)
