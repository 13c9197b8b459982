"""Writes captions of COCO and questions of VQA, each with the entry that it refers to, in LLaVA's form."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from lmmkit.data.image_markers import MARKER
from lmmkit.data.sources.json_records import RawRecord
from lmmkit.data.sources.record_keys import OWN_KEYS
from lmmkit.errors import Problem
from lmmkit.errors.data import OFFICIAL_ENTRY, TYPE

ASK_SHORT = "Answer the question using a single word or phrase."

Entry = Mapping[str, object]


@dataclass(frozen=True)
class OfficialForm(ABC):
    """Describes a list of entries, `asked`, each of which refers by `link` to an entry of another list, `given`,
    that has the value under `id_`. `files`: the file of `asked`, then that of `given`."""

    files: tuple[Path, Path]
    asked: ClassVar[str]
    given: ClassVar[str]
    link: ClassVar[str]
    id_: ClassVar[str]

    @abstractmethod
    def record(self, raw: RawRecord, entry: Entry, other: Entry, subset: str) -> RawRecord:
        """Returns the record of an entry of `asked` and the other entry in LLaVA's form. `subset`: the value
        `data_subtype` of the file of `given`; empty if it has none."""


class CocoCaptions(OfficialForm):
    """Reads `{"images": [{"id", "file_name"}], "annotations": [{"id", "image_id", "caption"}]}`: each caption is a
    record, whose question is the image alone."""

    asked, given, link, id_ = "annotations", "images", "image_id", "id"

    def record(self, raw: RawRecord, entry: Entry, other: Entry, subset: str) -> RawRecord:
        """Returns the record of a caption and the entry of its image."""
        value = {
            "id": entry.get("id"),
            "image": other.get("file_name"),
            **_turns(MARKER, entry.get("caption")),
        }
        rest = {**_others(other, "id", "file_name"), **_others(entry, "id", "caption")}
        names = {"image": "images.file_name", "value": "caption", **_entry_names("annotations", raw)}
        return raw._replace(value=value | rest, notes=_passed_over(entry, "id"), names=names)


class VqaQuestions(OfficialForm):
    """Reads VQA v2's `{"questions": [{"question_id", "image_id", "question"}]}` and `{"data_subtype", "annotations":
    [{"question_id", "image_id", "multiple_choice_answer", "answers"}]}`: each question is a record."""

    asked, given, link, id_ = "questions", "annotations", "question_id", "question_id"

    def record(self, raw: RawRecord, entry: Entry, other: Entry, subset: str) -> RawRecord:
        """Returns the record of a question and its annotation. Without `multiple_choice_answer` the most frequent
        answer is the right one, of several the first."""
        image, question, problems = entry.get("image_id"), entry.get("question"), list[tuple[str, Problem]]()
        name = entry.get("image")
        if name is None and subset and type(image) is int:
            name = f"COCO_{subset}_{image:012d}.jpg"
        if name is None:
            got, expected = (
                "no image",
                "`image`, or an integer `image_id` with a `data_subtype` of the annotations",
            )
            problems.append(("questions.image_id", OFFICIAL_ENTRY.at("", got=got, expected=expected)))
        if "image_id" in other and other["image_id"] != image:
            got = f"`image_id` {_shown(other['image_id'])}"
            expected = f"{_shown(image)}, as the question has it"
            problems.append(("annotations.image_id", OFFICIAL_ENTRY.at("", got=got, expected=expected)))
        answers, lost = _answers(other.get("answers"))
        right = other.get("multiple_choice_answer")
        if right is None and answers:
            right = Counter(answers).most_common(1)[0][0]
        if not isinstance(question, str):
            problem = TYPE.at("", got=f"`question` {_shown(question)}", expected="a string")
            problems.append((f"questions.{raw.index}.question", problem))
        if not isinstance(right, str):
            got = "no answer" if right is None else f"`multiple_choice_answer` {_shown(right)}"
            expected = "the text `multiple_choice_answer` of its annotation, or a text in `answers`"
            problem = TYPE.at("", got=got, expected=expected)
            problems.append(("annotations.multiple_choice_answer", problem))
        asked = (
            f"{MARKER}\n{question}\n{ASK_SHORT}"
            if isinstance(question, str) and question.strip()
            else question
        )
        value = {"id": entry.get("question_id"), "image": name, **_turns(asked, right)}
        rest = _others(other, "question_id", "multiple_choice_answer", "answers")
        rest |= _others(entry, "question_id", "question")
        if answers:
            rest["answers"] = answers
        notes = (*_passed_over(entry, "image"), *_passed_over(other), *lost)
        names = {"image": "questions.image", **_entry_names("questions", raw)}
        return raw._replace(value=value | rest, problems=tuple(problems), notes=notes, names=names)


def _turns(question: object, answer: object) -> dict[str, object]:
    return {"conversations": [{"from": "human", "value": question}, {"from": "gpt", "value": answer}]}


def _others(entry: Entry, *read: str) -> dict[str, object]:
    return {key: value for key, value in entry.items() if key not in read and key not in OWN_KEYS}


def _passed_over(entry: Entry, *read: str) -> tuple[str, ...]:
    """Returns a note for each key that has another meaning in a record."""
    return tuple(f"`{key}` of an entry is not read" for key in entry if key in OWN_KEYS and key not in read)


def _answers(value: object) -> tuple[list[str], list[str]]:
    """Returns the texts of the answers of several people, and notes for what else the answers contain."""
    texts, notes = list[str](), list[str]()
    for each in value if isinstance(value, list) else ():
        text = each.get("answer") if isinstance(each, dict) else each
        if isinstance(text, str):
            texts.append(text)
        else:
            notes.append("an entry of `answers` without a text is not read")
        if isinstance(each, dict):
            notes += [f"`{key[:40]}` of an answer is not kept" for key in each if key != "answer"]
    if value is not None and not isinstance(value, list):
        notes.append("`answers`, which is no list, is not read")
    return texts, list(dict.fromkeys(notes))


def _entry_names(asked: str, raw: RawRecord) -> dict[str, str]:
    """Returns the names that the turns of a record have in its file: its entry in the list `asked`."""
    return {"conversations": asked, "0": str(raw.index), "1": str(raw.index)}


def _shown(value: object) -> str:
    return repr(value)[:40]
