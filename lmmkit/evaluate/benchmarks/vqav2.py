"""VQAv2: short questions about images of COCO, with ten human answers each."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from lmmkit.errors import raise_all
from lmmkit.errors.benchmarks import OFFICIAL_RECORD, OFFICIAL_VERSION
from lmmkit.evaluate.benchmarks.benchmark import Benchmark, Item, Verdict
from lmmkit.evaluate.group_means import group_means
from lmmkit.evaluate.official_files import OfficialFiles, named, upload_problems
from lmmkit.evaluate.task import Figure
from lmmkit.evaluate.vqa_text import (
    ASK_SHORT,
    m4c,
    m4c_accuracy,
    m4c_scores,
    vqa_eval_accuracy,
)

_SUBSETS = {"val": "val2014", "test-dev": "test-dev2015", "test": "test2015"}
_QUESTION = {"question_id": int, "image_id": int, "question": str}
_ANNOTATION = {"question_id": int, "image_id": int, "question_type": str, "answer_type": str, "answers": list}


class VqaItems(list[Item]):
    """Holds the items of a split, and the ids of the questions that an upload lists with an empty answer."""

    not_asked: Sequence[int] = ()


class VqaV2(Benchmark):
    """Reads `v2_OpenEnded_mscoco_SUBSET_questions.json` and, for `val`, `v2_mscoco_val2014_annotations.json`; images
    in `val2014/` or `test2015/`. Subsets are val2014, test-dev2015 and test2015.

    A server scores the answers of `test-dev` and `test`. As LLaVA-1.5 did, an upload has a line for each question
    of test2015, with an empty answer for those that are not in test-dev.
    """

    name = "vqav2"
    title = "VQAv2"
    splits = ("val", "test-dev", "test")
    max_new_tokens = 128
    headline = "accuracy"
    caveats = (
        "Papers report test-dev, which only a server can score; `val` gives other numbers.",
        "LLaVA-1.5 is trained on questions of VQAv2.",
        "The official evaluation normalises only where annotators differ; `lenient` always normalises.",
    )
    normaliser = "m4c 1"

    def items(self, files: Path, *, split: str, cache: Path) -> Sequence[Item]:
        """Returns the questions in official order."""
        official = OfficialFiles(files, split=split, splits=self.splits)
        path, questions = _questions(official, split)
        annotations: dict[int, Any] = {}
        if split == "val":
            annotations = _annotations(official, path, questions)
        found = VqaItems()
        if split == "test-dev":
            found.not_asked = _not_asked(official, path, questions)
        folder = "val2014" if split == "val" else "test2015"
        names = [f"COCO_{folder}_{question['image_id']:012d}.jpg" for question in questions]
        images = official.images(official.find_folder(folder), names)
        official.check()
        found += (
            _item(question, image, annotations.get(question["question_id"]))
            for question, image in zip(questions, images, strict=True)
        )
        return found

    def verdict(self, item: Item, answer: str) -> Verdict:
        """Scores the normalised answer by the official evaluation; the lenient score normalises humans always."""
        parsed = m4c(answer)
        if item.gold is None:
            return Verdict(parsed=parsed or None, score=None)
        return Verdict(
            parsed=parsed or None, score=vqa_eval_accuracy(parsed, item.gold),
            lenient=m4c_accuracy(answer, item.gold),
        )  # fmt: skip

    def figures(self, items: Sequence[Item], verdicts: Sequence[Verdict]) -> dict[str, Figure]:
        """Returns the soft accuracy, of each type of answer and of question too."""
        if self.status(items) != "scored":
            return {}
        constants = [m4c_scores(item.gold) for item in items]
        out = group_means(
            "accuracy", items, [verdict.score or 0.0 for verdict in verdicts], constants=constants,
            kinds=["answer_type", "question_type"],
        )  # fmt: skip
        return out | group_means("lenient", items, [verdict.lenient or 0.0 for verdict in verdicts])

    def upload(self, items: Sequence[Item], answers: Mapping[str, str]) -> Mapping[str, bytes]:
        """Returns the file with the normalised answer to every question, and "" for those of test2015 that the
        split does not ask; nothing for a part of what the method `items` returned."""
        if self.status(items) == "scored" or not isinstance(items, VqaItems):
            return {}
        raise_all(upload_problems(self.name, [item.id for item in items], answers))
        lines = [{"question_id": int(item.id), "answer": m4c(answers[item.id])} for item in items]
        lines += [{"question_id": id, "answer": ""} for id in items.not_asked]
        return {"vqav2_test.json": json.dumps(lines).encode()}


def _item(question: Mapping[str, Any], image: str, annotation: Mapping[str, Any] | None) -> Item:
    return Item(
        id=str(question["question_id"]), prompt=f"{question['question']}\n{ASK_SHORT}", images=(image,),
        gold=None if annotation is None else annotation["answers"], cluster=str(question["image_id"]),
        groups={} if annotation is None else {key: annotation[key] for key in ("answer_type", "question_type")},
    )  # fmt: skip


def _questions(official: OfficialFiles, split: str) -> tuple[Path | None, list[dict[str, Any]]]:
    """Returns the path of a file of questions, and its questions."""
    subset = _SUBSETS[split]
    path = official.find(f"v2_OpenEnded_mscoco_{subset}_questions.json", under=("", "Questions"))
    value = official.json(path)
    if path is None or value is None or not official.sound(path, "", value, {"questions": list}):
        return path, []
    if value.get("data_subtype", subset) != subset:
        got = f"data_subtype {value['data_subtype']!r}"
        official.note(OFFICIAL_VERSION, path, got=got, expected=f"data_subtype `{subset}`")
    return path, official.records(path, value["questions"], _QUESTION, at="questions", key="question_id")


def _annotations(
    official: OfficialFiles, questions_path: Path | None, questions: Sequence[Mapping[str, Any]]
) -> dict[int, dict[str, Any]]:
    """Returns the annotations by question id, with answers as texts."""
    path = official.find("v2_mscoco_val2014_annotations.json", under=("", "Annotations"))
    value = official.json(path)
    if path is None or value is None or not official.sound(path, "", value, {"annotations": list}):
        return {}
    records = official.records(path, value["annotations"], _ANNOTATION, at="annotations", key="question_id")
    found = {}
    for record in records:
        id, answers = record["question_id"], record["answers"]
        ids = [answer.get("answer_id") for answer in answers if isinstance(answer, dict)]
        if len({str(each) for each in ids}) != len(answers):
            # the official evaluation leaves out equal entries together
            place, got = f"question_id {id}", f"answer_id {named(ids)}"
            official.note(
                OFFICIAL_RECORD, path, place, got=got, expected="10 answers with different `answer_id`"
            )
        found[id] = record | {"answers": official.human_answers(path, f"question_id {id}", answers)}
    if questions_path is not None:
        ids = [question["question_id"] for question in questions]
        official.same_ids(path, found, ids, str(questions_path))
    for question in questions:
        record = found.get(question["question_id"])
        if record is not None and record["image_id"] != question["image_id"]:
            place, got = f"question_id {question['question_id']}", f"image_id {record['image_id']}"
            official.note(OFFICIAL_VERSION, path, place, got=got, expected=f"image_id {question['image_id']}")
    return found


def _not_asked(
    official: OfficialFiles, path: Path | None, questions: Sequence[Mapping[str, Any]]
) -> list[int]:
    """Returns the ids of test2015 that test-dev does not ask."""
    _, every = _questions(official, "test")
    asked = {question["question_id"] for question in questions}
    ids = [question["question_id"] for question in every]
    if every and path is not None and (extra := asked.difference(ids)):
        got = f"questions {named(sorted(extra))}, which are not in test2015"
        official.note(OFFICIAL_VERSION, path, got=got, expected="questions of test2015")
    return [id for id in ids if id not in asked]
