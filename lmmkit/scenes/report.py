"""Reports on a written data set: counts, shares, and the accuracy of a baseline without images."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from lmmkit.majority import Majority
from lmmkit.scenes.questions import TYPES, Question


@dataclass(frozen=True, kw_only=True)
class SceneReport:
    """Describes a written data set. Shares and accuracies are between 0 and 1.

    `majority` is the accuracy on the held-out questions of the majority baseline, which reads no image and
    gives the most common training answer to the same question. `majority_by_type` is the same by type.
    """

    directory: Path
    seed: int
    scenes: int
    heldout_scenes: int
    questions: int
    heldout_questions: int
    type_shares: dict[str, float]
    heldout_type_shares: dict[str, float]
    yes_no_share: float
    heldout_yes_no_share: float
    majority: float
    majority_by_type: dict[str, float]
    vocabulary: int
    files: tuple[Path, ...]


def type_shares(questions: Iterable[Question]) -> dict[str, float]:
    """Returns the share of each question type."""
    counts = Counter(question.type for question in questions)
    return {name: counts[name] / counts.total() for name in TYPES}


def yes_no_share(questions: Iterable[Question]) -> float:
    """Returns the share of questions whose answer is yes or no."""
    answers = Counter(question.answer in ("yes", "no") for question in questions)
    return answers[True] / answers.total()


def majority_accuracy(train: Iterable[Question], heldout: Iterable[Question]) -> dict[str, float]:
    """Returns the accuracy of the majority baseline, by type and under "all"."""
    baseline = Majority((question.text, question.type, question.answer) for question in train)
    right: Counter[str] = Counter()
    asked: Counter[str] = Counter()
    for question in heldout:
        guess = baseline.answer(question.text, question.type)
        for name in (question.type, "all"):
            asked[name] += 1
            right[name] += guess == question.answer
    return {name: right[name] / asked[name] for name in (*TYPES, "all") if asked[name]}


def readme(report: SceneReport) -> str:
    """Returns the README.md of the data set. Two equal calls of `write_scenes` give equal text."""
    rows = "\n".join(
        f"| {name} | {report.type_shares[name]:.1%} | {report.heldout_type_shares[name]:.1%} "
        f"| {report.majority_by_type.get(name, 0):.1%} |"
        for name in TYPES
    )
    return f"""# Scenes

Drawn images with captions and questions, in the files and the JSON that LLaVA reads.
Written by `lmmkit data make-scenes` with seed {report.seed}; the same seed gives the same bytes.

| file | content |
|---|---|
| `images/train/`, `images/heldout/` | {report.scenes} and {report.heldout_scenes} images, \
JPEG and PNG |
| `pretrain.json` | one caption for each training image |
| `finetune.json` | a conversation for each training image: {report.questions} questions |
| `heldout.json` | {report.heldout_questions} questions on held-out images, one a record, \
with `type` and `scene` |
| `heldout_captions.json` | one caption for each held-out image |
| `tokenizer.model` | a sentencepiece model (BPE with byte fallback), {report.vocabulary} pieces |

Image paths are relative to this folder. An image shows one to four objects (shape, colour,
size, place) on a landscape. No held-out image shows the same objects in the same places as a
training image.

## Questions

| type | share in training | share held out | accuracy without the image |
|---|---|---|---|
{rows}
| all | | | {report.majority:.1%} |

The last column is the majority baseline: the most common training answer to the same question.
Yes/no questions are {report.yes_no_share:.1%} of the training questions and
{report.heldout_yes_no_share:.1%} of the held-out ones, answered yes and no equally often.
"""
