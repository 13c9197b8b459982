"""MMMU: college questions of 30 subjects, with options or open."""

from __future__ import annotations

import ast
import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from string import ascii_uppercase
from typing import Any

from lmmkit.errors import MachineError, raise_all
from lmmkit.errors.benchmarks import (
    ABSENT_IMAGES,
    LFS_POINTER,
    NO_EXTRA,
    NO_OFFICIAL_FILE,
    OFFICIAL_RECORD,
    OFFICIAL_VERSION,
)
from lmmkit.evaluate.benchmarks.benchmark import Benchmark, Item, Status, Verdict
from lmmkit.evaluate.group_means import group_means
from lmmkit.evaluate.official_files import OfficialFiles, named, pointer, upload_problems, write_image_once
from lmmkit.evaluate.option_letters import ASK_LETTER, lenient_letter
from lmmkit.evaluate.task import Figure
from lmmkit.evaluate.vqa_text import ASK_SHORT
from lmmkit.progress import counted

DOMAINS = {
    "Art and Design": ("Art", "Art_Theory", "Design", "Music"),
    "Business": ("Accounting", "Economics", "Finance", "Manage", "Marketing"),
    "Science": ("Biology", "Chemistry", "Geography", "Math", "Physics"),
    "Health and Medicine": (
        "Basic_Medical_Science", "Clinical_Medicine", "Diagnostics_and_Laboratory_Medicine", "Pharmacy",
        "Public_Health",
    ),
    "Humanities and Social Science": ("History", "Literature", "Sociology", "Psychology"),
    "Tech and Engineering": (
        "Agriculture", "Architecture_and_Engineering", "Computer_Science", "Electronics", "Energy_and_Power",
        "Materials", "Mechanical_Engineering",
    ),
}  # fmt: skip
DOMAIN_OF = {subject: domain for domain, subjects in DOMAINS.items() for subject in subjects}
CHOICE, OPEN = "multiple-choice", "open"
_SPEC = {"id": str, "question": str, "options": (str, list), "answer": (str, list), "question_type": str}
_KEY = {"question_type": str, "ground_truth": (str, list)}
_BEFORE_ANSWERS = ("could be ", "so ", "is ", "thus ", "therefore ", "final ", "answer ", "result ")
_TRIVIAL = (":", ",", ".", "!", "?", ";", "'")
_NUMBERS = (
    r"-?\b\d{1,3}(?:,\d{3})+\b",  # 1,000
    r"-?\d+(?:\.\d+)?[eE][+-]?\d+",  # 1.5e3
    r"-?(?:\d+\.\d+|\.\d+|\d+\b)(?![eE][+-]?\d+)(?![,\d])",  # 1.5
)


class Mmmu(Benchmark):
    """Scores letters and short answers by MMMU's own parsers.

    Needs the parquet files of the Hugging Face release, `SUBJECT/validation-*.parquet` (extra `benchmarks`), or the
    same records in `validation.json` or `validation.jsonl`, with paths of images below the folder. An
    `answer_dict_val.json` next to them replaces the answers of the records.

    The official parser takes a random letter if it finds none; here it is drawn from a hash of the item's id, and
    the share of such items is a figure. The lenient parser never guesses: it also accepts "A. red" and "b", and for
    open questions looks into the complete response. LLaVA-1.5 gets the first image only.
    """

    name = "mmmu"
    title = "MMMU"
    splits = ("validation", "dev", "test")
    max_new_tokens = 128
    headline = "accuracy"
    caveats = (
        "The official parser guesses a letter where it finds none, also for `A. red` and `b`: read the "
        "lenient figure and the share of guesses too.",
        "LLaVA-1.5's published figures come from sampling with 5 beams at temperature 1, lmmkit decodes greedily.",
    )
    normaliser = "mmmu 1"

    def items(self, files: Path, *, split: str, cache: Path) -> Sequence[Item]:
        """Returns the questions, ordered by subject and number."""
        found = OfficialFiles(files, split=split, splits=self.splits)
        places = self._rows(found, split)
        if places:
            self._check(found, split, [(path, row["id"]) for path, row in places])
        key = self._key(found, [row["id"] for _, row in places]) if split == "validation" else {}
        items = [
            self._item(found, path, row, key.get(row["id"]), cache / self.name)
            for path, row in counted("reading images", places)
        ]
        found.check()
        return sorted((item for item in items if item is not None), key=_place)

    def verdict(self, item: Item, answer: str) -> Verdict:
        """Returns the scores by the parser for options or for open answers."""
        gold = item.gold["answers"]
        if not gold:
            letter = official_choice(answer, item.gold["options"]) if item.gold["type"] == CHOICE else answer
            return Verdict(parsed=letter, score=None, fallback=letter is None)
        if item.gold["type"] == OPEN:
            read = official_candidates(answer)
            right = _open_right(gold, read)
            lenient = right or _open_right(gold, [*read, *_normal(answer)])
            parsed = " | ".join(str(each) for each in read)
            return Verdict(parsed=parsed, score=float(right), lenient=float(lenient))
        options = item.gold["options"]
        letter = official_choice(answer, options)
        lenient = letter or lenient_letter(answer, ascii_uppercase[: len(options)])
        guess = letter or _drawn(item.id, len(options))
        return Verdict(
            parsed=letter, score=float(guess in gold), lenient=float(lenient in gold), fallback=letter is None
        )

    def figures(self, items: Sequence[Item], verdicts: Sequence[Verdict]) -> dict[str, Figure]:
        """Returns the accuracy of all questions, of each domain, type and subject; then the share of guesses. Nothing
        for split `test`."""
        if self.status(items) != "scored":
            return {}
        # an open question has no letter that could be right
        letters: list[dict[str, float]] = [
            dict.fromkeys(item.gold["answers"] if item.gold["type"] == CHOICE else (), 1.0) for item in items
        ]
        strict, lenient = [v.score or 0.0 for v in verdicts], [v.lenient or 0.0 for v in verdicts]
        kinds = ("domain", "type", "subject")
        out = group_means("accuracy", items, strict, kinds=kinds, constants=letters)
        out |= group_means("lenient", items, lenient, constants=letters)
        guesses = sum(verdict.fallback for verdict in verdicts)
        return out | {"guessed letters": Figure(value=guesses / max(1, len(items)), n=len(items))}

    def status(self, items: Sequence[Item]) -> Status:
        """Returns that a server scores the split `test`."""
        return "scored" if all(item.gold["answers"] for item in items) else "pending-server"

    def upload(self, items: Sequence[Item], answers: Mapping[str, str]) -> Mapping[str, bytes]:
        """Returns the file for MMMU's server: by id the letter that the official parser reads, a drawn one where it
        finds none, or the answer to an open question as it is."""
        if self.status(items) == "scored":
            return {}
        raise_all(upload_problems("--upload", [item.id for item in items], answers))
        given = {item.id: answers[item.id] for item in items}
        for item in (item for item in items if item.gold["type"] == CHOICE):
            options = item.gold["options"]
            given[item.id] = official_choice(given[item.id], options) or _drawn(item.id, len(options))
        return {"mmmu_test.json": json.dumps(given, indent=1).encode()}

    def _rows(self, found: OfficialFiles, split: str) -> list[tuple[Path, dict[str, Any]]]:
        """Returns the records, each with its file."""
        paths = sorted(found.folder.glob(f"*/{split}-*.parquet"))
        if paths:
            return [
                (path, row) for path in paths for row in found.records(path, _parquet(found, path), _SPEC)
            ]
        lines = found.folder / f"{split}.jsonl"
        path = lines if lines.is_file() else found.find(f"{split}.json")
        if path is None:
            expected = f"{split}.jsonl, {split}.json or SUBJECT/{split}-*.parquet"
            found.note(NO_OFFICIAL_FILE, found.folder, got="none of these files", expected=expected)
            return []
        values = found.json_lines(path) if path == lines else found.json(path)
        return [(path, row) for row in found.records(path, values, _SPEC)]

    def _check(self, found: OfficialFiles, split: str, ids: Sequence[tuple[Path, str]]) -> None:
        """Notes ids of another split or subject, those that occur twice, and missing subjects."""
        found.unique(found.folder, "id", [id_ for _, id_ in ids])
        for path, id_ in ids:
            if _subject(split, id_) is None:
                found.note(
                    OFFICIAL_VERSION, path, got=f"id `{id_}`", expected=f"an id such as `{split}_Art_1`"
                )
        if missing := sorted(set(DOMAIN_OF) - {_subject(split, id_) for _, id_ in ids}):
            found.note(
                OFFICIAL_VERSION,
                found.folder,
                got=f"no question of {named(missing)}",
                expected="all 30 subjects",
            )

    def _key(self, found: OfficialFiles, ids: Sequence[str]) -> Mapping[str, dict[str, Any]]:
        """Returns the records of the official file of answers by id; none if there is no such file."""
        path = found.folder / "answer_dict_val.json"
        if not path.is_file() or not ids:
            return {}
        key = found.table(path, found.json(path), _KEY)
        found.same_ids(path, key, ids, "the questions")
        return key

    def _item(
        self,
        found: OfficialFiles,
        path: Path,
        row: Mapping[str, Any],
        key: Mapping[str, Any] | None,
        cache: Path,
    ) -> Item | None:
        """Returns one question; None after a problem."""
        split, _, _ = row["id"].partition("_")
        subject, options = _subject(split, row["id"]), _texts(row["options"])
        answer = row["answer"] if key is None else key["ground_truth"]
        answers = [answer] if isinstance(answer, str) else answer
        if key is None and isinstance(answer, str) and answer.startswith("["):
            answers = _texts(answer) or answers
        type_ = row["question_type"]
        fault = None
        if type_ not in (CHOICE, OPEN):
            fault = f"`question_type`: {type_!r}", f"{CHOICE} or {OPEN}"
        elif options is None or (type_ == CHOICE and not options):
            fault = f"`options`: {row['options']!r:.60}", "a Python list of texts"
        elif split == "test":
            answers = []  # the release has a question mark instead
        elif not answers or not all(isinstance(each, str) for each in answers):
            fault = f"the answer {answer!r:.60}", "a text or a list of texts"
        elif type_ == CHOICE and not set(answers) <= set(ascii_uppercase[: len(options)]):
            fault = f"the answer {answer!r:.60}", f"a letter of {len(options)} options"
        elif key is not None and (key["question_type"] == CHOICE) != (type_ == CHOICE):
            fault = f"`question_type`: {type_!r}", f"{key['question_type']}, as in answer_dict_val.json"
        if fault is not None:
            found.note(OFFICIAL_RECORD, path, f"`{row['id']}`", got=fault[0], expected=fault[1])
        image = self._image(found, path, row, cache)
        if fault is not None or image is None or subject is None:
            return None
        return Item(
            id=row["id"],
            prompt=_prompt(row["question"], options if type_ == CHOICE else None),
            images=(image,),
            gold={"type": type_, "answers": answers, "options": options},
            cluster=row["id"],
            groups={"domain": DOMAIN_OF[subject], "type": type_, "subject": subject},
        )

    def _image(self, found: OfficialFiles, path: Path, row: Mapping[str, Any], cache: Path) -> str | None:
        """Returns the file of the first image: below the folder, or written from the table."""
        image = row.get("image_1")
        if isinstance(image, str):
            return found.images(found.folder, [image])[0]
        data = image.get("bytes") if isinstance(image, dict) else None
        written = write_image_once(cache, data) if isinstance(data, bytes) else None
        if written is None:
            found.note(ABSENT_IMAGES, path, f"`{row['id']}`", got="no image in `image_1`")
        return None if written is None else str(written)


def official_choice(answer: str, options: Sequence[str]) -> str | None:
    """Returns the letter that MMMU's parser reads; None where it guesses.

    Looks for "(A)", then for " A ", then, in more than five words, for the texts of options. Of several it takes the
    one whose last occurrence is the last.
    """
    for mark in ",.!?;:'":
        answer = answer.strip(mark)
    text = f" {answer} "
    letters = ascii_uppercase[: len(options)]
    searches = [
        (text, {each: f"({each})" for each in letters}),
        (text, {each: f" {each} " for each in letters}),
    ]
    if len(text.split()) > 5:
        searches.append(
            (text.lower(), {each: option.lower() for each, option in zip(letters, options, strict=False)})
        )
    for place, forms in searches:
        last = {letter: place.rfind(form) for letter, form in forms.items() if form in place}
        if last:
            return max(last, key=lambda letter: last[letter])  # of equal ones the first
    return None


def official_candidates(answer: str) -> list[str | float]:
    """Returns the texts and numbers that MMMU's parser takes from an answer to an open question."""
    whole = answer.strip().strip(".").lower()
    lines = whole.split("\n")
    tails = []
    for number, line in enumerate(lines, start=1):
        marks = _BEFORE_ANSWERS if number < len(lines) else (*_BEFORE_ANSWERS, "=")
        shortest = ""
        for tail in (line.split(mark)[-1].strip() for mark in marks if mark in line):
            if not shortest or len(tail) < len(shortest):
                shortest = tail
        if shortest and shortest not in _TRIVIAL:
            tails.append(shortest)
    tails = tails or [whole]
    numbers = [number for tail in tails for pattern in _NUMBERS for number in re.findall(pattern, tail)]
    return [each for text in (*tails, *numbers) for each in _normal(text)]


def _normal(text: str) -> list[str | float]:
    """Returns a number rounded to two places, a text in lower case, or a character with a space on either side."""
    text = text.strip()
    try:
        return [round(float(text.replace(",", "")), 2)]
    except ValueError:
        text = text.lower()
        return [f" {text}", f"{text} "] if len(text) == 1 else [text]


def _open_right(golds: Sequence[str], read: Sequence[str | float]) -> bool:
    """Returns whether a number equals a right one, or a text contains a right text."""
    right = [each for gold in golds for each in _normal(gold)]
    texts = [each for each in right if isinstance(each, str)]
    return any(
        any(text in each for text in texts) if isinstance(each, str) else each in right for each in read
    )


def _drawn(id_: str, options: int) -> str:
    """Returns the letter for an item in which the official parser finds none; always the same for one id."""
    return ascii_uppercase[int.from_bytes(hashlib.sha256(id_.encode()).digest()) % options]


def _prompt(question: str, options: Sequence[str] | None) -> str:
    """Returns the prompt of MMMU's script for LLaVA; an open question has no options."""
    if options is None:
        return f"{question}\n{ASK_SHORT}"
    listed = "".join(
        f"({letter}) {option}\n" for letter, option in zip(ascii_uppercase, options, strict=False)
    )
    return f"{question}\n{listed}\n{ASK_LETTER}"


def _subject(split: str, id_: str) -> str | None:
    found = re.fullmatch(rf"{split}_(.+)_\d+", id_)
    return found[1] if found and found[1] in DOMAIN_OF else None


def _place(item: Item) -> tuple[str, int]:
    return item.groups["subject"], int(item.id.rpartition("_")[2])


def _texts(value: str | list[Any]) -> list[str] | None:
    """Returns a list of texts, also one that a text denotes in Python; None if it is something else."""
    try:
        value = ast.literal_eval(value) if isinstance(value, str) else value
    except (ValueError, SyntaxError, RecursionError, MemoryError, TypeError):
        return None
    return value if isinstance(value, list) and all(isinstance(each, str) for each in value) else None


def _parquet(found: OfficialFiles, path: Path) -> list[dict[str, Any]]:
    """Returns the records of a parquet file with the columns that are read."""
    with open(path, "rb") as file:
        if pointer(file.read(128)):
            found.note(LFS_POINTER, path, got="a pointer in place of the table")
            return []
    try:
        from pyarrow import ArrowException, parquet  # an extra: imported only if there is such a file
    except ImportError as error:
        raise MachineError(NO_EXTRA.at(str(path), got="no package pyarrow")) from error
    try:
        table = parquet.ParquetFile(path)
        columns = [name for name in (*_SPEC, "image_1") if name in table.schema_arrow.names]
        return table.read(columns=columns).to_pylist()
    except (ArrowException, OSError) as error:
        found.note(
            OFFICIAL_RECORD, path, got=f"no parquet ({error})", expected="a parquet file of the release"
        )
        return []
