"""Reads answers that another program wrote: official files, LLaVA's JSONL, lmms-eval's samples, VLMEvalKit's tables."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from string import ascii_uppercase
from typing import Any

from lmmkit.errors import MachineError, UserError
from lmmkit.errors.answers import EXTRA, FOREIGN
from lmmkit.evaluate.answers.answers_file import read_answers
from lmmkit.evaluate.answers.schema import OWN

ID_KEYS = ("question_id", "questionId", "id", "index", "pid", "image", "doc_id")
TEXT_KEYS = ("text", "answer", "prediction", "pred_answer", "response")
IMAGE_KEYS = ("image_path", "image_source", "image_name")
FAILED = "Failed to obtain answer"  # what VLMEvalKit writes in place of an answer after an error
PROMPT_KEYS = ("prompt", "question", "text_in", "input")


@dataclass(frozen=True)
class ForeignAnswer:
    """Holds one answer. `id`: as the file names it; "" if it names none. `prompt`: the question or prompt, if the
    file has it; `image`: the name of the image. `place`: line or record, from 1. `groups`: parts of the data that
    the file names, such as subsets. `failed`: the program notes that the model gave no answer."""

    text: str
    id: str = ""
    prompt: str = ""
    image: str = ""
    place: int = 0
    groups: frozenset[str] = frozenset()
    failed: bool = False


def read_foreign(path: Path, form: str | None = None) -> tuple[str, list[ForeignAnswer]]:
    """Returns the name of the form, and the answers, in the order of the file.

    Args:
        path: a file, or for `mme` a folder of one text file for each subtask.
        form: a name of `FORMATS`; by default it is found out.

    Raises:
        UserError: a file in none of these forms.
        MachineError: an .xlsx file, and openpyxl is not installed.
    """
    form = form or detected(path)
    try:
        if form not in FORMATS:
            raise ValueError("an unknown form")
        found = list(FORMATS[form](path))
        if not found:
            raise ValueError("no answers")
        return form, found
    except (ValueError, LookupError, TypeError, AttributeError, OSError, RecursionError) as error:
        got = f"{error.strerror if isinstance(error, OSError) else error}"
        raise UserError(FOREIGN.at(str(path), got=f"{form}: {got}", formats=", ".join(FORMATS))) from None


def detected(path: Path) -> str:
    """Returns the form of a file, from its name and its first record."""
    if path.is_dir():
        return "mme"
    if path.suffix in (".xlsx", ".tsv", ".csv"):
        return "vlmevalkit"
    if path.suffix != ".jsonl":
        try:
            json.loads(path.read_text(encoding="utf-8-sig"))
            return "json"
        except (ValueError, OSError, RecursionError):
            pass  # several lines of JSON, or a file that the reader refuses
    try:
        with path.open(encoding="utf-8-sig") as file:
            first = json.loads(file.readline())
        if "condition" in first and "prompt_sha" in first:
            return "lmmkit"
        return "lmms-eval" if "filtered_resps" in first else "jsonl"
    except (ValueError, OSError, TypeError, RecursionError):
        return "jsonl"


def _json(path: Path) -> Iterator[ForeignAnswer]:
    """Reads a list of records, or a mapping from ids to texts."""
    value = json.loads(path.read_text(encoding="utf-8-sig"))
    if isinstance(value, dict):
        inner = value.get("outputs", value)  # LLaVA's ScienceQA result
        for place, (id, text) in enumerate(inner.items(), 1):
            if not isinstance(text, str):
                raise ValueError(f"`{id}` is not a text")
            yield ForeignAnswer(text, str(id), place=place)
        return
    yield from _records(value)


def _jsonl(path: Path) -> Iterator[ForeignAnswer]:
    yield from _records(_lines(path))


def _lmmkit(path: Path) -> Iterator[ForeignAnswer]:
    for place, answer in enumerate(read_answers(path), 1):
        if answer.condition == OWN:
            yield ForeignAnswer(answer.raw, answer.id, answer.question, place=place)


def _lmms_eval(path: Path) -> Iterator[ForeignAnswer]:
    for place, line in enumerate(_lines(path), 1):
        response = line["filtered_resps"]
        while isinstance(response, list):
            response = response[0]
        doc: Any = line.get("doc")
        doc = doc if isinstance(doc, dict) else {}
        prompt = line.get("input") or doc.get("question") or ""
        yield ForeignAnswer(str(response), _id(doc), prompt if isinstance(prompt, str) else "", place=place)


def _vlmevalkit(path: Path) -> Iterator[ForeignAnswer]:
    for place, row in enumerate(_table(path), 1):
        if "prediction" not in row:
            raise ValueError("a table without the column `prediction`")
        text = "" if row["prediction"] is None else str(row["prediction"])
        options = [
            f"{letter}. {row[letter]}" for letter in ascii_uppercase if row.get(letter) not in (None, "")
        ]
        yield ForeignAnswer(
            text, _id(row), "\n".join([str(row.get("question") or ""), *options]),
            next((str(row[key]) for key in IMAGE_KEYS if row.get(key)), ""), place,
            groups=frozenset(str(row["category"]).split(",")) if row.get("category") else frozenset(),
            failed=text.startswith(FAILED),
        )  # fmt: skip


def _mme(path: Path) -> Iterator[ForeignAnswer]:
    """Reads one file for each subtask: lines of image (or its text), question, right answer and answer, with tabs."""
    place = 0
    for file in sorted(path.glob("*.txt")):
        for line in file.read_text(encoding="utf-8").splitlines():
            image, question, _, text = line.split("\t")
            place += 1
            yield ForeignAnswer(
                text, f"{file.stem}/{image}", question, image, place, groups=frozenset({file.stem})
            )


FORMATS: dict[str, Callable[[Path], Iterator[ForeignAnswer]]] = {
    "json": _json,
    "jsonl": _jsonl,
    "lmmkit": _lmmkit,
    "lmms-eval": _lmms_eval,
    "vlmevalkit": _vlmevalkit,
    "mme": _mme,
}


def _records(values: Iterable[Any]) -> Iterator[ForeignAnswer]:
    for place, value in enumerate(values, 1):
        if not isinstance(value, dict):
            raise ValueError(f"record {place} is a {type(value).__name__}")
        key = next((key for key in TEXT_KEYS if isinstance(value.get(key), str)), None)
        if key is None:
            raise ValueError(f"record {place} has none of the keys {', '.join(TEXT_KEYS)}")
        prompt = next((value[k] for k in PROMPT_KEYS if isinstance(value.get(k), str)), "")
        image = value.get("image")
        yield ForeignAnswer(value[key], _id(value), prompt, image if isinstance(image, str) else "", place)


def _id(value: Mapping[str, Any]) -> str:
    return next((str(value[key]) for key in ID_KEYS if isinstance(value.get(key), str | int)), "")


def _lines(path: Path) -> Iterator[dict[str, Any]]:
    with path.open(encoding="utf-8-sig") as file:
        for line in file:
            if line.strip():
                yield json.loads(line)


def _table(path: Path) -> Iterator[dict[str, Any]]:
    if path.suffix == ".xlsx":
        try:
            from openpyxl import load_workbook
        except ImportError as error:
            raise MachineError(
                EXTRA.at(str(path), got=f"no openpyxl ({error})", extra="benchmarks")
            ) from error
        try:
            sheet: Any = load_workbook(path, read_only=True, data_only=True).active
            rows = sheet.values
        except Exception as error:  # openpyxl raises errors of many types for broken files
            raise ValueError(f"no table ({error})") from error
        names = [str(name) for name in next(rows, ())]
        yield from (dict(zip(names, row, strict=False)) for row in rows)
        return
    csv.field_size_limit(1 << 30)  # a column may have an image in base64
    with path.open(encoding="utf-8-sig", newline="") as file:
        yield from csv.DictReader(file, delimiter="\t" if path.suffix == ".tsv" else ",")
