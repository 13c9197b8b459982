"""Writes records as a JSON list or JSONL, in LLaVA's form or that of `messages`."""

from __future__ import annotations

import json
from pathlib import Path

from lmmkit.data.convert.image_copies import ImageFolder
from lmmkit.data.convert.rows import Row, llava_value, messages_value


class JsonWriter:
    """Writes `records.json` or `records.jsonl` into a folder. `images`: where copies of the images are written; None:
    the records name the files of their source."""

    def __init__(self, folder: Path, kind: str, lines: bool, images: ImageFolder | None) -> None:
        self.name, self.images = f"records.{'jsonl' if lines else 'json'}", images
        self._value = llava_value if kind == "llava" else messages_value
        self._file = open(folder / self.name, "w", encoding="utf-8")  # noqa: SIM115
        self._between, self._end = ("", "") if lines else ("[\n", "\n]\n")
        self._next = "\n" if lines else ",\n"
        self._lines = lines

    def add(self, row: Row, lost: list[str]) -> int:
        """Writes a record. Returns the number of images that were copied."""
        names, copied = row.names, 0
        if self.images is not None:
            names = tuple(self.images.add(*each) for each in zip(row.images, row.names, strict=True))
            lost += ["the name of an image"] * any(
                not b.endswith(a) for a, b in zip(row.names, names, strict=True)
            )
            copied = len(names)
        text = as_json(self._value(row, names, lost))
        self._file.write(f"{self._between}{text}")
        self._between = self._next
        return copied

    def close(self) -> None:
        """Ends the file."""
        self._file.write("\n" if self._lines else self._end)
        self._file.close()


def as_json(value: object) -> str:
    """Returns a value as JSON that UTF-8 can encode."""
    text = json.dumps(value, ensure_ascii=False, allow_nan=False)
    try:
        text.encode()
    except UnicodeEncodeError:  # half of a surrogate pair, in a value that lmmkit does not read
        return json.dumps(value, allow_nan=False)
    return text
