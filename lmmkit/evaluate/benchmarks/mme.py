"""MME: two yes/no questions about each image, in ten subtasks of perception and four of cognition."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import sqrt
from pathlib import Path

import numpy as np

from lmmkit.errors import raise_all
from lmmkit.errors.benchmarks import ABSENT_IMAGES, NO_OFFICIAL_FILE, OFFICIAL_RECORD
from lmmkit.evaluate.benchmarks.benchmark import Benchmark, Item, Verdict
from lmmkit.evaluate.bootstrap import SummedFigure, ratio
from lmmkit.evaluate.official_files import OfficialFiles, named, upload_problems
from lmmkit.evaluate.stats import wilson
from lmmkit.evaluate.task import Figure
from lmmkit.evaluate.vqa_text import ASK_SHORT

SUBTASKS = {
    "perception": (
        "existence", "count", "position", "color", "posters", "celebrity", "scene", "landmark", "artwork", "OCR",
    ),
    "cognition": ("commonsense_reasoning", "numerical_calculation", "text_translation", "code_reasoning"),
}  # fmt: skip
PART_OF = {subtask: part for part, subtasks in SUBTASKS.items() for subtask in subtasks}
BOTH = 200.0  # points of a subtask in which all answers are right: 100 for accuracy, 100 for accuracy+
ASK_YES_NO = "Please answer yes or no."
IMAGES = (".jpg", ".png", ".jpeg")
ONE_LINE = str.maketrans("\t\r\n", "   ")


class Mme(Benchmark):
    """Sums 100 * (accuracy + accuracy+) over subtasks; accuracy+ counts images with both answers right.

    Needs the folders of all 14 subtasks, in the release's two layouts: the images next to their `.txt` files, or in
    `images/` with the texts in `questions_answers_YN/`. Figures are in points: 2,000 for perception at most, 800 for
    cognition. Chance is the better of always "yes" and always "no".
    """

    name = "mme"
    title = "MME"
    splits = ("test",)
    max_new_tokens = 128
    headline = "perception"
    scale = 1.0
    caveats = (
        "One training run's score has a standard error of about 31 points from the choice of images alone, and "
        "repeated trainings differ by about 20.",
    )
    normaliser = "one line 1"

    def items(self, files: Path, *, split: str, cache: Path) -> Sequence[Item]:
        """Returns the questions, two for each image, ordered by subtask and file name.

        The id of the second question on an image is the official id, which both have, with "#2".
        """
        found = OfficialFiles(files, split=split, splits=self.splits)
        items: list[Item] = []
        for subtask in PART_OF:
            folder = found.find_folder(subtask)
            if folder is not None:
                items += self._subtask(found, subtask, folder)
        found.check()
        return items

    def verdict(self, item: Item, answer: str) -> Verdict:
        """Returns whether the answer is the official one: "yes" or "no" in its first four characters.

        The lenient parser reads the first word, and takes "y" and "n" as words.
        """
        parsed, word = official_yes_no(answer), _first_word(answer)
        return Verdict(
            parsed=None if parsed == "other" else parsed,
            score=float(parsed == item.gold),
            lenient=float({"y": "yes", "n": "no"}.get(word, word) == item.gold),
        )

    def figures(self, items: Sequence[Item], verdicts: Sequence[Verdict]) -> dict[str, Figure]:
        """Returns the sums of perception and of cognition, then both figures and points of each subtask."""
        images = _by_image(items)
        golds = [item.gold for item in items]
        rules = {
            "": [verdict.score == 1.0 for verdict in verdicts],
            " lenient": [verdict.lenient == 1.0 for verdict in verdicts],
        }
        constants = [[gold == word for gold in golds] for word in ("yes", "no")]
        out: dict[str, Figure] = {}
        for rule, right in rules.items():
            for part, subtasks in SUBTASKS.items():
                groups = [
                    group for subtask in subtasks if (group := [i for i in images if i.subtask == subtask])
                ]
                if groups:
                    out[part + rule] = _sum(
                        [_points(group, right) for group in groups],
                        chance=max(sum(_points(group, each).value for group in groups) for each in constants),
                    )
        for subtask, part in PART_OF.items():
            if group := [image for image in images if image.subtask == subtask]:
                chance = max(_points(group, each).value for each in constants)
                points = _points(group, rules[""])
                out[f"{part}/{subtask}"] = Figure(
                    value=points.value, low=points.low, high=points.high, chance=chance, n=points.n
                )
        return out

    def sums(self, items: Sequence[Item], verdicts: Sequence[Verdict]) -> dict[str, SummedFigure]:
        """Returns perception and cognition: of each subtask the shares of its images, and their number."""
        right = [verdict.score == 1.0 for verdict in verdicts]
        images = _by_image(items)
        found = {}
        for part, subtasks in SUBTASKS.items():
            of_part = [image for image in images if image.subtask in subtasks]
            columns = np.zeros((len(items), 2 * len(subtasks)))
            for image in of_part:
                at = 2 * subtasks.index(image.subtask)
                columns[image.first, at : at + 2] = _share(image, right), 1.0
            if of_part:
                found[part] = SummedFigure(
                    columns, lambda sums: BOTH * ratio(sums[..., ::2], sums[..., 1::2]).sum(-1)
                )
        return found

    def upload(self, items: Sequence[Item], answers: Mapping[str, str]) -> Mapping[str, bytes]:
        """Returns the files that the official script reads: for each subtask lines of file, question, label, answer.

        Tabs and line breaks in an answer become spaces: they would shift the script's pairs of lines.
        """
        raise_all(upload_problems("--upload", [item.id for item in items], answers))
        lines: dict[str, list[str]] = defaultdict(list)
        for item in items:
            answer = answers[item.id].translate(ONE_LINE)
            row = (item.columns["file"], item.columns["question"], item.columns["label"], answer)
            lines[item.groups["subtask"]].append("\t".join(row) + "\n")
        return {f"{subtask}.txt": "".join(several).encode() for subtask, several in lines.items()}

    def _subtask(self, found: OfficialFiles, subtask: str, folder: Path) -> list[Item]:
        """Returns the questions of one subtask; notes texts that are not two questions, and missing images."""
        nested = (folder / "images").is_dir()
        texts, images = (folder / "questions_answers_YN", folder / "images") if nested else (folder, folder)
        shown = [
            path
            for path in (sorted(images.iterdir()) if images.is_dir() else ())
            if path.suffix.lower() in IMAGES and not path.name.startswith(".")
        ]
        found.unique(images, "image", [path.stem for path in shown])
        stems = {path.stem: path.name for path in shown}
        asked = sorted(
            path for path in texts.glob("*.txt") if path.is_file() and not path.name.startswith(".")
        )
        if absent := [path.stem for path in asked if path.stem not in stems]:
            found.note(ABSENT_IMAGES, images, got=f"no image for {named(absent)}")
        if silent := sorted(set(stems) - {path.stem for path in asked}):
            expected = "a text for each image"
            found.note(NO_OFFICIAL_FILE, texts, got=f"no text for {named(silent)}", expected=expected)
        if not asked:
            found.note(NO_OFFICIAL_FILE, texts, got="no .txt file", expected="the questions of the subtask")
        asked = [path for path in asked if path.stem in stems]
        items, bad = [], []
        for path, image in zip(
            asked, found.images(images, [stems[path.stem] for path in asked]), strict=True
        ):
            id_ = f"{subtask}/images/{stems[path.stem]}" if nested else f"{subtask}/{stems[path.stem]}"
            questions = _questions(found, path)
            if questions is None:
                bad.append(path.name)
            for number, (question, label) in enumerate(questions or (), start=1):
                items.append(
                    Item(
                        id=id_ if number == 1 else f"{id_}#2",
                        prompt=f"{question.removesuffix(ASK_YES_NO).rstrip()}\n{ASK_SHORT}",
                        images=(image,),
                        gold=label.lower(),
                        cluster=id_,
                        groups={"part": PART_OF[subtask], "subtask": subtask},
                        columns={"file": path.name, "question": question, "label": label},
                    )
                )
        if bad:
            expected = "two lines in each text: question, tab, Yes or No"
            found.note(OFFICIAL_RECORD, texts, got=f"something else in {named(bad)}", expected=expected)
        return items


def official_yes_no(answer: str) -> str:
    """Returns "yes", "no" or "other" as MME's script does: by the first four characters, "yes" before "no"."""
    start = answer.lower()[:4]
    return "yes" if "yes" in start else "no" if "no" in start else "other"


def _first_word(answer: str) -> str:
    words = "".join(c if c.isalnum() else " " for c in answer.lower()).split()
    return words[0] if words else ""


def _questions(found: OfficialFiles, path: Path) -> list[tuple[str, str]] | None:
    """Returns the two questions of a text, each with its label; None if the text is something else."""
    lines = [line.strip().split("\t") for line in found.text(path).split("\n") if line.strip()]
    if len(lines) != 2 or any(len(line) != 2 or line[1].lower() not in ("yes", "no") for line in lines):
        return None
    return [(question, label) for question, label in lines]


@dataclass(frozen=True)
class _Image:
    """Holds the numbers of the two questions on an image."""

    subtask: str
    first: int
    second: int


def _by_image(items: Sequence[Item]) -> list[_Image]:
    """Returns the images of which both questions are among the items."""
    asked: dict[str, list[int]] = defaultdict(list)
    for i, item in enumerate(items):
        asked[item.cluster].append(i)
    return [_Image(items[pair[0]].groups["subtask"], *pair) for pair in asked.values() if len(pair) == 2]


def _share(image: _Image, right: Sequence[bool]) -> float:
    """Returns the share of 200 points that an image gives: one right answer has 50."""
    return (0.0, 0.25, 1.0)[right[image.first] + right[image.second]]


def _points(images: Sequence[_Image], right: Sequence[bool]) -> Figure:
    """Returns the points of a subtask, the mean over its images."""
    shares = np.array([_share(image, right) for image in images])
    n, mean = len(shares), float(shares.mean())
    variance = float(shares.var()) * n / max(1, n - 1)
    # Wilson's interval for as many yes/no values as would have this variance of the mean
    low, high = wilson(mean, n * mean * (1 - mean) / variance if variance > 0 else n)
    return Figure(value=BOTH * mean, low=BOTH * low, high=BOTH * high, n=2 * n)


def _sum(subtasks: Sequence[Figure], *, chance: float) -> Figure:
    """Returns the sum of independent figures. Its distance to each end is the root of the sum of their squares."""
    total = sum(each.value for each in subtasks)
    below = sqrt(sum((each.value - (each.low or 0.0)) ** 2 for each in subtasks))
    above = sqrt(sum(((each.high or 0.0) - each.value) ** 2 for each in subtasks))
    return Figure(
        value=total, low=total - below, high=total + above, chance=chance, n=sum(each.n for each in subtasks)
    )
