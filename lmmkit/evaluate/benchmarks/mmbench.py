"""MMBench: up to four options, asked once for each rotation of the options."""

from __future__ import annotations

import base64
import binascii
import csv
import io
import re
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from lmmkit.errors import MachineError, raise_all
from lmmkit.errors.benchmarks import (
    ABSENT_IMAGES,
    NO_EXTRA,
    NO_OFFICIAL_FILE,
    OFFICIAL_RECORD,
    OFFICIAL_VERSION,
)
from lmmkit.evaluate.benchmarks.benchmark import Benchmark, Item, Verdict
from lmmkit.evaluate.bootstrap import SummedFigure, ratio
from lmmkit.evaluate.group_means import group_means
from lmmkit.evaluate.official_files import OfficialFiles, named, upload_problems, write_image_once
from lmmkit.evaluate.option_letters import ASK_LETTER, lenient_letter, lettered
from lmmkit.evaluate.task import Figure
from lmmkit.progress import counted

LETTERS = "ABCD"
ROTATION = 1_000_000  # added to the index for each rotation of the options
# of the table that the server takes
COLUMNS = ("index", "question", *LETTERS, "prediction", "answer", "split")
LONGEST_CELL = 32_767  # characters, in an .xlsx file
_SPACES = {code: " " for code in range(32) if chr(code) not in "\t\n\r"}  # control characters
# what pandas, which LLaVA reads the table with, takes for an empty cell; and LLaVA any case of "none" and "nan"
EMPTY = frozenset((
    "", "#N/A", "#N/A N/A", "#NA", "-1.#IND", "-1.#QNAN", "-NaN", "-nan", "1.#IND", "1.#QNAN", "<NA>", "N/A", "NA",
    "NULL", "n/a", "null",
))  # fmt: skip
_INDEX = re.compile(r"[0-9]{1,12}")


class MMBench(Benchmark):
    """Scores letters by circular evaluation: a question counts if the answers to all its rotations are right.

    Needs `mmbench_dev_20230712.tsv`, or another release of the English table, with images in base64. "vanilla" is the
    accuracy of the questions without rotations. The lenient parser also accepts "B." and "(B) red". The server of
    the test split reads other answers by a language model.
    """

    name = "mmbench"
    title = "MMBench"
    splits = ("dev", "test")
    max_new_tokens = 1024
    headline = "circular"
    caveats = (
        "LLaVA-1.5's 64.3 and 67.7 are circular figures of the 4,377 rows of mmbench_dev_20230712; later tables have "
        "others. An option that reads None is not shown, as in LLaVA's script.",
    )
    normaliser = "cells 1"

    def items(self, files: Path, *, split: str, cache: Path) -> Sequence[Item]:
        """Returns the rows of the table in its order; rotations are questions of their own, in one cluster."""
        found = OfficialFiles(files, split=split, splits=self.splits)
        path = self._table(found, split)
        rows = self._rows(found, path) if path is not None else []
        images = self._images(found, path or files, rows, cache / self.name)
        rotations = self._rotations(found, path or files, rows)
        found.check()
        items = []
        for row, image in zip(rows, images, strict=True):
            cluster = int(row["index"]) % ROTATION
            parts = [] if _empty(row["hint"]) else [row["hint"]]
            parts += [row["question"], *([lettered(shown)] if (shown := _shown(row)) else []), ASK_LETTER]
            items.append(
                Item(
                    id=row["index"],
                    prompt="\n".join(parts),
                    images=(image,),
                    gold={"letter": row["answer"], "rotations": rotations[cluster]}
                    if row.get("answer")
                    else None,
                    cluster=str(cluster),
                    groups={name: row[name] for name in ("category", "l2-category") if row.get(name)},
                    columns={name: row[name] for name in COLUMNS if name in row},
                )
            )
        return items

    def verdict(self, item: Item, answer: str) -> Verdict:
        """Returns whether the answer is the letter."""
        letter = lenient_letter(answer, LETTERS)
        parsed = answer if answer in tuple(LETTERS) else None
        if item.gold is None:
            return Verdict(parsed=parsed or letter, score=None)
        return Verdict(
            parsed=parsed,
            score=float(answer == item.gold["letter"]),
            lenient=float(letter == item.gold["letter"]),
        )

    def figures(self, items: Sequence[Item], verdicts: Sequence[Verdict]) -> dict[str, Figure]:
        """Returns circular accuracy, of all questions and by category, then by the lenient parser; then vanilla."""
        if any(item.gold is None for item in items):
            return {}
        rotations = _complete(items)
        letters = [{item.gold["letter"]: 1.0} for item in items]
        # a constant letter is right for a question if it is right in all its rotations
        always = [set.intersection(*(set(letters[i]) for i in turns)) for turns in rotations]
        questions = [items[turns[0]] for turns in rotations]
        first = [i for i, item in enumerate(items) if int(item.id) < ROTATION]
        out: dict[str, Figure] = {}
        for rule, scores in {
            "": [verdict.score or 0.0 for verdict in verdicts],
            " lenient": [verdict.lenient or 0.0 for verdict in verdicts],
        }.items():
            circular = [min(scores[i] for i in turns) for turns in rotations]
            kinds = () if rule else ("l2-category", "category")
            constants = [dict.fromkeys(several, 1.0) for several in always]
            out |= group_means(f"circular{rule}", questions, circular, kinds=kinds, constants=constants)
            vanilla = [scores[i] for i in first]
            out |= group_means(
                f"vanilla{rule}", [items[i] for i in first], vanilla, constants=[letters[i] for i in first]
            )
        return out

    def sums(self, items: Sequence[Item], verdicts: Sequence[Verdict]) -> dict[str, SummedFigure]:
        """Returns the circular accuracy: questions with right answers to all rotations, and questions."""
        if any(item.gold is None for item in items):
            return {}
        columns = np.zeros((len(items), 2))
        complete = _complete(items)
        for turns in complete:
            columns[turns[0]] = min(verdicts[i].score or 0.0 for i in turns), 1.0
        circular = SummedFigure(columns, lambda sums: ratio(sums[..., 0], sums[..., 1]))
        return {"circular": circular} if complete else {}

    def upload(self, items: Sequence[Item], answers: Mapping[str, str]) -> Mapping[str, bytes]:
        """Returns the .xlsx table that the server takes. Needs the extra `benchmarks`.

        A cell of such a table holds no control characters, which become spaces, and a limited length.
        """
        raise_all(upload_problems("--upload", [item.id for item in items], answers))
        try:
            from openpyxl import Workbook  # an extra: imported only for an upload
        except ImportError as error:
            raise MachineError(NO_EXTRA.at("--upload", got="no package openpyxl")) from error
        book = Workbook()
        sheet = book.active
        assert sheet is not None
        names = [
            name for name in COLUMNS if name == "prediction" or any(name in item.columns for item in items)
        ]
        sheet.append(names)
        for number, item in enumerate(items, start=2):
            for column, name in enumerate(names, start=1):
                text = _cell(answers[item.id] if name == "prediction" else item.columns.get(name, ""))
                if name == "index":
                    sheet.cell(number, column, int(text))
                elif text:
                    sheet.cell(
                        number, column, text
                    ).data_type = "s"  # also for "=...", which would be a formula
        file = io.BytesIO()
        book.save(file)
        return {"mmbench.xlsx": file.getvalue()}

    def _table(self, found: OfficialFiles, split: str) -> Path | None:
        """Returns the table of the split; the Chinese one has other prompts."""
        tables = sorted(found.folder.glob("*.tsv"))
        several = [
            path
            for path in tables
            if path.stem.lower().startswith(f"mmbench_{split}") and "_cn" not in path.stem.lower()
        ]
        if len(several) != 1 and found.folder.is_dir():
            got = named([path.name for path in several]) or "no such table"
            found.note(NO_OFFICIAL_FILE, found.folder, got=got, expected=f"one table mmbench_{split}_*.tsv")
        return several[0] if len(several) == 1 else None

    def _rows(self, found: OfficialFiles, path: Path) -> list[dict[str, str]]:
        """Returns the sound rows; notes missing columns, and rows of another length."""
        text = found.text(path)
        if not text:
            return []
        with _long_fields():
            try:
                names, *rows = (
                    row for row in csv.reader(io.StringIO(text, newline=""), delimiter="\t") if row
                )
            except (csv.Error, ValueError) as error:
                found.note(OFFICIAL_RECORD, path, got=f"no table ({error})", expected="a table with tabs")
                return []
        if missing := [
            name for name in ("index", "question", "hint", *LETTERS, "image") if name not in names
        ]:
            found.note(
                OFFICIAL_RECORD, path, "line 1", got=f"no column {named(missing)}", expected="all columns"
            )
            return []
        sound = []
        for number, row in enumerate(rows, start=1):
            if len(row) != len(names) or not _INDEX.fullmatch(row[names.index("index")]):
                got = f"{len(row)} cells beginning with {str(row[:1])[:40]}"
                expected = f"{len(names)} cells, with a number as `index`"
                found.note(OFFICIAL_RECORD, path, f"row {number}", got=got, expected=expected)
            else:
                sound.append(dict(zip(names, row, strict=True)))
        return sound

    def _images(
        self, found: OfficialFiles, path: Path, rows: Sequence[Mapping[str, str]], cache: Path
    ) -> list[str]:
        """Returns the files of the images. Later tables give the index of another row instead of the same image."""
        texts = {row["index"]: row["image"] for row in rows}
        files: dict[str, str] = {}
        for row in counted(f"{path.name}: images", rows):
            text = texts.get(row["image"], row["image"])
            if text not in files:
                try:
                    written = write_image_once(cache, base64.b64decode(text))
                except (binascii.Error, ValueError):
                    written = None
                if written is None:
                    found.note(
                        ABSENT_IMAGES, path, f"index {row['index']}", got=f"no image in base64: {text[:30]!r}"
                    )
                files[text] = str(written)
        return [files[texts.get(row["image"], row["image"])] for row in rows]

    def _rotations(
        self, found: OfficialFiles, path: Path, rows: Sequence[Mapping[str, str]]
    ) -> dict[int, int]:
        """Returns how many rotations each question has.

        Notes ids that occur twice, answers that are no letter, and missing rotations.
        """
        found.unique(path, "index", [row["index"] for row in rows])
        turns: dict[int, dict[int, int]] = defaultdict(dict)
        for row in rows:
            index = int(row["index"])
            turns[index % ROTATION][index // ROTATION] = len(_shown(row))
            if row.get("answer") and row["answer"] not in tuple(LETTERS):
                got = f"`answer`: {row['answer'][:40]!r}"
                found.note(
                    OFFICIAL_RECORD, path, f"index {index}", got=got, expected=f"one of {', '.join(LETTERS)}"
                )
        # an option that is not shown has a rotation too, so there may be more than options shown
        rotations = {cluster: max(len(several), *several.values()) for cluster, several in turns.items()}
        if incomplete := [
            cluster for cluster, several in turns.items() if set(several) != set(range(rotations[cluster]))
        ]:
            got, expected = (
                f"not all rotations of {named(incomplete)}",
                "a row for each rotation of the options",
            )
            found.note(OFFICIAL_VERSION, path, got=got, expected=expected)
        return rotations


def _empty(cell: str) -> bool:
    return cell in EMPTY or cell.lower() in ("none", "nan")


def _shown(row: Mapping[str, str]) -> list[str]:
    """Returns the options up to the first empty one."""
    shown = []
    for letter in LETTERS:
        if _empty(row[letter]):
            break
        shown.append(row[letter])
    return shown


def _complete(items: Sequence[Item]) -> list[list[int]]:
    """Returns the numbers of the rows of each question that has all its rotations among the items, in their order."""
    rows: dict[str, dict[int, int]] = defaultdict(dict)
    for i, item in enumerate(items):
        rows[item.cluster][int(item.id) // ROTATION] = i
    asked = ([several[turn] for turn in sorted(several)] for several in rows.values())
    return [indices for indices in asked if len(indices) == items[indices[0]].gold["rotations"]]


def _cell(text: str) -> str:
    """Returns the text as a cell of an .xlsx file can hold it."""
    return text[:LONGEST_CELL].translate(_SPACES)


@contextmanager
def _long_fields() -> Iterator[None]:
    """Lets `csv` read cells with images."""
    before = csv.field_size_limit(2**31 - 1)
    try:
        yield
    finally:
        csv.field_size_limit(before)
