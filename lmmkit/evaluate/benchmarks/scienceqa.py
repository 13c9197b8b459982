"""ScienceQA: multiple-choice questions of school science, half of them with an image."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from string import ascii_uppercase
from typing import Any

from lmmkit.errors.benchmarks import OFFICIAL_RECORD, OFFICIAL_VERSION
from lmmkit.evaluate.benchmarks.benchmark import Benchmark, Item, Verdict
from lmmkit.evaluate.group_means import group_means
from lmmkit.evaluate.official_files import OfficialFiles, named
from lmmkit.evaluate.option_letters import ASK_LETTER, lenient_letter
from lmmkit.evaluate.task import Figure

_LETTERS = "ABCDE"
_SPEC = {
    "question": str, "choices": list, "answer": int, "hint": str, "image": (str, type(None)), "grade": str,
    "subject": str, "split": str,
}  # fmt: skip
_SENTENCE = re.compile(r"The answer is ([A-Z]).")


class ScienceQa(Benchmark):
    """Reads `problems.json`, `pid_splits.json`, and the images in `images/SPLIT/ID/`."""

    name = "scienceqa"
    title = "ScienceQA"
    splits = ("test", "val")
    max_new_tokens = 1024
    headline = "image accuracy"
    caveats = (
        "Papers report the 2,017 test questions with an image (SQA-IMG); `accuracy` is of all 4,241.",
        "Runs of one public LLaVA-1.5 checkpoint differ by a point; train the baseline in the same way.",
        "The official parser refuses `B.`; the lenient one accepts it.",
    )

    def items(self, files: Path, *, split: str, cache: Path) -> Sequence[Item]:
        """Returns the questions of the split in official order."""
        official = OfficialFiles(files, split=split, splits=self.splits)
        path = official.find("problems.json", under=("", "data"))
        problems = official.table(path, official.json(path), _SPEC)
        splits = official.find("pid_splits.json", under=("", "data"))
        ids = _ids(official, splits, split)
        if path is not None and problems:
            if missing := [id for id in ids if id not in problems]:
                got = f"no question {named(missing)}"
                official.note(
                    OFFICIAL_VERSION, path, got=got, expected=f"all ids of split {split} in {splits}"
                )
            ids = [id for id in ids if id in problems and _is_sound(official, path, id, problems[id], split)]
        else:
            ids = []
        names = [f"{id}/{problems[id]['image']}" for id in ids if problems[id]["image"] is not None]
        images = official.images(official.find_folder(f"images/{split}", split), names) if names else []
        official.check()
        by_name = dict(zip(names, images, strict=True))
        return [_item(id, problems[id], by_name) for id in ids]

    def verdict(self, item: Item, answer: str) -> Verdict:
        """Reads a letter as LLaVA's script does; the lenient parser also accepts "B.", "(B)" and "b"."""
        letter, lenient = official_letter(answer), lenient_letter(answer, ascii_uppercase)
        return Verdict(
            parsed=letter, score=float(letter == item.gold), lenient=float(item.gold in (letter, lenient))
        )

    def figures(self, items: Sequence[Item], verdicts: Sequence[Verdict]) -> dict[str, Figure]:
        """Returns the accuracy of questions with an image, and of all, with their parts."""
        shown = [i for i, item in enumerate(items) if item.images]
        of_image = [items[i] for i in shown]
        out = {}
        for label, scores in (
            ("accuracy", [verdict.score or 0.0 for verdict in verdicts]),
            ("lenient", [verdict.lenient or 0.0 for verdict in verdicts]),
        ):
            out |= group_means(
                f"image {label}", of_image, [scores[i] for i in shown],
                constants=[{item.gold: 1.0} for item in of_image],
            )  # fmt: skip
            out |= group_means(
                label, items, scores, kinds=["subject", "context", "grade"] if label == "accuracy" else [],
                constants=[{item.gold: 1.0} for item in items],
            )  # fmt: skip
        return out


def official_letter(answer: str) -> str | None:
    """Returns the letter that LLaVA's script reads; None where it fails, such as for "B."."""
    if len(answer) == 1 and answer in _LETTERS:
        return answer
    if len(answer) >= 3 and answer[0] in _LETTERS and answer[1:3] == ". ":
        return answer[0]
    found = _SENTENCE.findall(answer)
    return found[0] if len(found) == 1 else None


def _ids(official: OfficialFiles, path: Path | None, split: str) -> list[str]:
    """Returns the ids of a split."""
    value = official.json(path)
    if path is None or value is None or not official.sound(path, "", value, {split: list}):
        return []
    if not value[split]:
        official.note(OFFICIAL_RECORD, path, split, got="no ids", expected="the ids of the split")
    if wrong := [id for id in value[split] if not isinstance(id, str)]:
        official.note(OFFICIAL_RECORD, path, split, got=f"ids {named(wrong)}", expected="texts")
        return []
    official.unique(path, "id", value[split])
    return value[split]


def _is_sound(
    official: OfficialFiles, path: Path, id: str, problem: Mapping[str, Any], split: str
) -> bool:  # fmt: skip
    """Returns whether a question is complete; notes it if not."""
    choices, expected = problem["choices"], None
    if not all(isinstance(choice, str) for choice in choices) or not 2 <= len(choices) <= len(_LETTERS):
        expected = "`choices`: 2 to 5 texts"
    elif not 0 <= problem["answer"] < len(choices):
        expected = "`answer`: the number of a choice"
    elif problem["split"] != split:
        expected = f"`split`: {split}"
    if expected is not None:
        got = f"`choices`: {choices}, `answer`: {problem['answer']}, `split`: {problem['split']}"
        official.note(OFFICIAL_RECORD, path, f"`{id}`", got=got[:200], expected=expected)
    return expected is None


def _item(id: str, problem: Mapping[str, Any], images: Mapping[str, str]) -> Item:
    image = None if problem["image"] is None else images[f"{id}/{problem['image']}"]
    context = f"Context: {problem['hint']}\n" if problem["hint"] else ""
    choices = "".join(
        f"\n{letter}. {choice}" for letter, choice in zip(_LETTERS, problem["choices"], strict=False)
    )
    question = f"{context}{problem['question']}{choices}".strip()
    grade = int(re.sub(r"\D", "", problem["grade"]) or 0)
    contexts = "image" if image is not None else "text" if problem["hint"] else "none"
    return Item(
        id=id, prompt=f"{question}\n{ASK_LETTER}", images=() if image is None else (image,),
        gold=_LETTERS[problem["answer"]], cluster=id,
        groups={
            "subject": problem["subject"],
            "context": f"context {contexts}",
            "grade": "grades 1-6" if grade <= 6 else "grades 7-12",
        },
    )  # fmt: skip
