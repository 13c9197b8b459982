"""Writes captions of COCO and questions of VQA, each with the entry that it refers to, in LLaVA's form."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Mapping
from typing import ClassVar

from lmmkit.data.image_markers import MARKER
from lmmkit.data.sources.json_records import RawRecord
from lmmkit.data.sources.record_keys import OWN_KEYS
from lmmkit.data.sources.record_parser import value_kind
from lmmkit.errors import Problem
from lmmkit.errors.data import OFFICIAL_ENTRY, TYPE

ASK_SHORT = "Answer the question using a single word or phrase."

Entry = Mapping[str, object]


class OfficialForm(ABC):
    """Describes a list of entries, `asked`, each of which refers by `link` to an entry of another list, `given`,
    that has the value under `id_`. `together`: each file has both lists. `expected`: what a file with one of the lists
    is. `needed`: a key of the entries of a list that those of other data sets lack."""

    asked: ClassVar[str]
    given: ClassVar[str]
    link: ClassVar[str]
    id_: ClassVar[str]
    together: ClassVar[bool]
    expected: ClassVar[Mapping[str, str]]
    needed: ClassVar[Mapping[str, str]]

    @abstractmethod
    def image(self, entry: Entry, other: Entry, subset: str) -> object:
        """Returns the name of the image of an entry of `asked` and the other entry; None if there is none. `subset`:
        the value `data_subtype` of the file of `given`; empty if it has none."""

    @abstractmethod
    def record(self, raw: RawRecord, entry: Entry, other: Entry, image: object) -> RawRecord:
        """Returns the record of an entry of `asked` and the other entry in LLaVA's form."""


class CocoCaptions(OfficialForm):
    """Reads `{"images": [{"id", "file_name"}], "annotations": [{"id", "image_id", "caption"}]}`: each caption is a
    record, whose question is the image alone."""

    asked, given, link, id_, together = "annotations", "images", "image_id", "id", True
    expected: ClassVar[Mapping[str, str]] = dict.fromkeys(
        (asked, given), "captions of COCO, a JSON object with the lists `images` and `annotations`"
    )
    needed: ClassVar[Mapping[str, str]] = {"annotations": "caption", "images": "id"}

    def image(self, entry: Entry, other: Entry, subset: str) -> object:
        """Returns the name of the image of a caption."""
        return other.get("file_name")

    def record(self, raw: RawRecord, entry: Entry, other: Entry, image: object) -> RawRecord:
        """Returns the record of a caption and the entry of its image."""
        caption, spaces = _stripped(entry.get("caption"), "caption")
        value = {"id": entry.get("id"), "image": image, **_turns(MARKER, caption)}
        rest = {**_others(other, "id", "file_name"), **_others(entry, "id", "caption")}
        names = {"image": "images.file_name", "value": "caption", **_entry_names("annotations", raw)}
        return raw._replace(value=value | rest, notes=(*_passed_over(entry, "id"), *spaces), names=names)


class VqaQuestions(OfficialForm):
    """Reads VQA v2's `{"questions": [{"question_id", "image_id", "question"}]}` and `{"data_subtype", "annotations":
    [{"question_id", "image_id", "multiple_choice_answer", "answers"}]}`: each question is a record."""

    asked, given, link, id_, together = "questions", "annotations", "question_id", "question_id", False
    expected: ClassVar[Mapping[str, str]] = {
        "questions": "VQA's questions, a JSON object with the list `questions`",
        "annotations": "VQA's annotations, a JSON object with the list `annotations`",
    }
    needed: ClassVar[Mapping[str, str]] = {"questions": "question", "annotations": "question_id"}

    def image(self, entry: Entry, other: Entry, subset: str) -> object:
        """Returns the name of the image of a question: its own, or COCO's."""
        name, number = entry.get("image"), as_id(entry.get("image_id"))
        if name is None and subset and number is not None and number.isascii() and number.isdecimal():
            return f"COCO_{subset}_{int(number):012d}.jpg"
        return name

    def record(self, raw: RawRecord, entry: Entry, other: Entry, image: object) -> RawRecord:
        """Returns the record of a question and its annotation. Without `multiple_choice_answer` the most frequent
        answer is the right one, of several the first."""
        problems = list[tuple[str, Problem]]()
        if image is None:
            got, expected = (
                "no image",
                "`image`, or an integer `image_id` with a `data_subtype` of the annotations",
            )
            problems.append(("questions.image_id", OFFICIAL_ENTRY.at("", got=got, expected=expected)))
        if "image_id" in other and as_id(other["image_id"]) != as_id(entry.get("image_id")):
            got = f"`image_id` {shown_id(other['image_id'])}"
            expected = f"{shown_id(entry.get('image_id'))}, as the question has it"
            problems.append(("annotations.image_id", OFFICIAL_ENTRY.at("", got=got, expected=expected)))
        question, spaces = _stripped(entry.get("question"), "question")
        right, more_spaces = _stripped(other.get("multiple_choice_answer"), "multiple_choice_answer")
        answers, lost = _answers(other.get("answers"))
        if right is None and answers:
            right, more_spaces = _stripped(Counter(answers).most_common(1)[0][0], "answers")
        if not isinstance(question, str):
            problem = TYPE.at("", got=f"`question` {value_kind(question)}", expected="a string")
            problems.append((f"questions.{raw.index}.question", problem))
        if not isinstance(right, str):
            got = "no answer" if right is None else f"`multiple_choice_answer` {value_kind(right)}"
            expected = "the text `multiple_choice_answer` of its annotation, or a text in `answers`"
            problem = TYPE.at("", got=got, expected=expected)
            problems.append(("annotations.multiple_choice_answer", problem))
        asked = f"{MARKER}\n{question}\n{ASK_SHORT}" if isinstance(question, str) and question else question
        value = {"id": entry.get("question_id"), "image": image, **_turns(asked, right)}
        rest = _others(other, "question_id", "multiple_choice_answer", "answers")
        rest |= _others(entry, "question_id", "question")
        if answers:
            rest["answers"] = answers
        notes = (*_passed_over(entry, "image"), *_passed_over(other), *lost, *spaces, *more_spaces)
        names = {"image": "questions.image", **_entry_names("questions", raw)}
        return raw._replace(value=value | rest, problems=tuple(problems), notes=notes, names=names)


FORMS: Mapping[str, OfficialForm] = {"coco": CocoCaptions(), "vqa": VqaQuestions()}


def as_id(value: object) -> str | None:
    """Returns an id as text, so that 7 and "7" are equal; None for a value that is none."""
    return str(value) if type(value) in (int, str) else None


def shown_id(value: object) -> str:
    """Describes an id, for a message."""
    return str(value) if type(value) is int else value_kind(value)


def _stripped(value: object, key: str) -> tuple[object, list[str]]:
    """Returns a text without the white space around it, and a note of its key if there was some."""
    if not isinstance(value, str) or (text := value.strip()) == value:
        return value, []
    return text, [f"white space around `{key}` is left out"]


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
