"""TextVQA: questions about text in images."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from lmmkit.errors.benchmarks import OFFICIAL_RECORD, OFFICIAL_VERSION
from lmmkit.evaluate.benchmarks.benchmark import Benchmark, Item, Verdict
from lmmkit.evaluate.group_means import group_means
from lmmkit.evaluate.official_files import OfficialFiles, named
from lmmkit.evaluate.task import Figure
from lmmkit.evaluate.vqa_text import ASK_SHORT, m4c, m4c_accuracy, m4c_scores

NO_OCR = "val-no-ocr"
_QUESTIONS, _TOKENS = "TextVQA_0.5.1_val.json", "TextVQA_Rosetta_OCR_v0.2_val.json"
_SPEC = {"question_id": int, "question": str, "image_id": str, "answers": list}
_TOKENS_SPEC = {"image_id": str, "ocr_tokens": list}
_MOST_WITHOUT = 0.1  # share of images without a record of tokens from which on the file is another one


class TextVqa(Benchmark):
    """Reads `TextVQA_0.5.1_val.json`, the images in `train_images/`, and for split `val` the tokens that Rosetta
    OCR found, which LLaVA-1.5 adds to the prompt: `TextVQA_Rosetta_OCR_v0.2_val.json`."""

    name = "textvqa"
    title = "TextVQA"
    splits = ("val", NO_OCR)
    max_new_tokens = 128
    headline = "accuracy"
    caveats = (
        "The prompt of split `val` contains OCR tokens, as for the 58.2 and 61.3 of LLaVA-1.5; that of "
        f"`{NO_OCR}` does not, and scores are about ten points lower. Compare only equal prompts.",
        "lmms-eval and VLMEvalKit ask without OCR tokens by default.",
    )
    normaliser = "m4c 1"

    def items(self, files: Path, *, split: str, cache: Path) -> Sequence[Item]:
        """Returns the questions in official order."""
        official = OfficialFiles(files, split=split, splits=self.splits)
        path = official.find(_QUESTIONS)
        value = official.json(path)
        questions = official.records(path, _data(official, path, value), _SPEC, at="data", key="question_id")
        if path is not None:
            for question in questions:
                official.human_answers(path, f"question_id {question['question_id']}", question["answers"])
        ids = [question["image_id"] for question in questions]
        tokens = None if split == NO_OCR else _tokens(official, ids)
        images = official.images(
            official.find_folder("train_images", "train_val_images/train_images"), [f"{id}.jpg" for id in ids]
        )
        official.check()
        return [
            Item(
                id=str(question["question_id"]),
                prompt=_prompt(question["question"], None if tokens is None else tokens.get(id, ())),
                images=(image,),
                gold=question["answers"],
                cluster=id,
                groups={"ocr": _ocr_group(tokens, id)},
            )
            for question, id, image in zip(questions, ids, images, strict=True)
        ]

    def verdict(self, item: Item, answer: str) -> Verdict:
        """Scores the normalised answer against the ten human answers."""
        return Verdict(parsed=m4c(answer) or None, score=m4c_accuracy(answer, item.gold))

    def figures(self, items: Sequence[Item], verdicts: Sequence[Verdict]) -> dict[str, Figure]:
        """Returns the soft accuracy, of questions with and without OCR tokens in the prompt too."""
        return group_means(
            "accuracy", items, [verdict.score or 0.0 for verdict in verdicts], kinds=["ocr"],
            constants=[m4c_scores(item.gold) for item in items],
        )  # fmt: skip


def _prompt(question: str, tokens: Sequence[str] | None) -> str:
    """Returns LLaVA's prompt; with a line of OCR tokens, which may be empty, unless `tokens` is None."""
    line = "" if tokens is None else f"\nReference OCR token: {', '.join(tokens)}"
    return f"{question.capitalize()}{line}\n{ASK_SHORT}"


def _ocr_group(tokens: Mapping[str, Sequence[str]] | None, image_id: str) -> str:
    """Returns the name of the group: what the prompt has of OCR."""
    if tokens is None:
        return "prompt without OCR"
    return "OCR tokens" if tokens.get(image_id) else "OCR without tokens"


def _data(official: OfficialFiles, path: Path | None, value: Any) -> Any:
    """Returns the list `data` of a file."""
    if path is None or value is None or not official.sound(path, "", value, {"data": list}):
        return None
    if (split := value.get("dataset_type", "val")) != "val":
        official.note(OFFICIAL_VERSION, path, got=f"dataset_type {split!r}", expected="dataset_type `val`")
    return value["data"]


def _tokens(official: OfficialFiles, ids: Sequence[str]) -> dict[str, Sequence[str]]:
    """Returns the OCR tokens by image id. Some images have none."""
    path = official.find(_TOKENS)
    data = _data(official, path, official.json(path))
    records = official.records(path, data, _TOKENS_SPEC, at="data", key="image_id")
    found = {record["image_id"]: record["ocr_tokens"] for record in records}
    if path is None:
        return found
    for id, tokens in found.items():
        if not all(isinstance(token, str) for token in tokens):
            got = "`ocr_tokens` that are no texts"
            official.note(OFFICIAL_RECORD, path, f"image_id {id}", got=got, expected="`ocr_tokens`: texts")
    missing = [id for id in dict.fromkeys(ids) if id not in found]
    if data is not None and len(missing) > _MOST_WITHOUT * len(set(ids)):
        got, expected = f"no record of image {named(missing)}", f"the images of {_QUESTIONS}"
        official.note(OFFICIAL_VERSION, path, got=got, expected=expected)
    return found
