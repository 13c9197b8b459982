"""POPE: is an object in the image? Three subsets that differ in how the absent objects were chosen."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from lmmkit.errors.benchmarks import OFFICIAL_RECORD, OFFICIAL_VERSION
from lmmkit.evaluate.benchmarks.benchmark import Benchmark, Item, Verdict
from lmmkit.evaluate.bootstrap import SummedFigure, ratio
from lmmkit.evaluate.group_means import group_means, mean_of_ratios
from lmmkit.evaluate.official_files import OfficialFiles, named
from lmmkit.evaluate.task import Figure
from lmmkit.evaluate.vqa_text import ASK_SHORT

# LLaVA's question file has the subsets in this order, and adds these numbers to the number of the line.
FIRST_IDS = {"adversarial": 0, "random": 10_000_000, "popular": 20_000_000}
_SPEC = {"question_id": int, "image": str, "text": str, "label": str}


class Pope(Benchmark):
    """Reads `coco_pope_{random,popular,adversarial}.json`, and the images in `val2014/`.

    The id of an item is that of LLaVA's question file. F1 without a detail is the mean of the three subsets;
    the other figures without a detail are of all questions.
    """

    name = "pope"
    title = "POPE"
    splits = ("coco",)
    max_new_tokens = 128
    headline = "f1"
    caveats = (
        "LLaVA-1.5 reports F1, not accuracy; its 85.9 is the mean of the three subsets' F1.",
        "The random file has 2,910 questions in the version that LLaVA-1.5 used, and 3,000 since.",
        "The official parser reads any answer without `No`, `no` or `not` before its first period as yes.",
    )

    def items(self, files: Path, *, split: str, cache: Path) -> Sequence[Item]:
        """Returns the questions of the three subsets."""
        official = OfficialFiles(files, split=split, splits=self.splits)
        lines: list[tuple[str, int, dict[str, Any]]] = []
        positives = {}
        for subset in FIRST_IDS:
            path = official.find(f"coco_pope_{subset}.json", under=("", "coco", "output/coco"))
            records = official.records(path, official.json_lines(path), _SPEC, at="line", key="question_id")
            if path is not None:
                _check(official, path, records)
            positives[subset] = {(r["image"], r["text"]): path for r in records if r["label"] == "yes"}
            lines += [(subset, number, record) for number, record in enumerate(records, 1)]
        _check_same(official, positives)
        paths = official.images(official.find_folder("val2014"), [record["image"] for _, _, record in lines])
        official.check()
        return [
            Item(
                id=str(FIRST_IDS[subset] + number), prompt=f"{record['text']}\n{ASK_SHORT}", images=(path,),
                gold=record["label"], cluster=record["image"], groups={"subset": subset},
            )
            for (subset, number, record), path in zip(lines, paths, strict=True)
        ]  # fmt: skip

    def verdict(self, item: Item, answer: str) -> Verdict:
        """Reads yes or no as the official script does; the lenient parser takes the first word alone."""
        parsed = yes_or_no(answer)
        words = answer.lower().replace(".", " ").replace(",", " ").replace("!", " ").split()
        return Verdict(
            parsed=parsed, score=float(parsed == item.gold), lenient=float(words[:1] == [item.gold]),
            fallback=parsed == "yes" and words[:1] != ["yes"],
        )  # fmt: skip

    def figures(self, items: Sequence[Item], verdicts: Sequence[Verdict]) -> dict[str, Figure]:
        """Returns F1, accuracy, precision, recall and the share of yes, of each subset too."""
        by_subset = defaultdict(list)
        for item, verdict in zip(items, verdicts, strict=True):
            by_subset[item.groups["subset"]].append(
                Asked(verdict.parsed == "yes", item.gold == "yes", item.cluster)
            )
        every = [asked for several in by_subset.values() for asked in several]
        out = _f1([*by_subset.values()], "f1")
        for subset, several in by_subset.items():
            out |= _f1([several], f"f1/{subset}")
        out |= group_means(
            "accuracy", items, [v.score or 0.0 for v in verdicts], kinds=["subset"],
            constants=[{item.gold: 1.0} for item in items],
        )  # fmt: skip
        details = {"": every} | {f"/{subset}": several for subset, several in by_subset.items()}
        for detail, several in details.items():
            out["precision" + detail] = mean_of_ratios([[(a.found, a.yes, a.cluster) for a in several]])
        for detail, several in details.items():
            out["recall" + detail] = mean_of_ratios([[(a.found, a.present, a.cluster) for a in several]])
        out |= group_means("yes", items, [float(v.parsed == "yes") for v in verdicts], kinds=["subset"])
        out |= group_means("lenient", items, [v.lenient or 0.0 for v in verdicts], kinds=["subset"])
        return out | _unstable(items, verdicts)

    def sums(self, items: Sequence[Item], verdicts: Sequence[Verdict]) -> dict[str, SummedFigure]:
        """Returns F1: of each subset what `_f1` divides."""
        subsets = list(dict.fromkeys(item.groups["subset"] for item in items))
        columns = np.zeros((len(items), 2 * len(subsets)))
        for i, (item, verdict) in enumerate(zip(items, verdicts, strict=True)):
            at = 2 * subsets.index(item.groups["subset"])
            yes, present = verdict.parsed == "yes", item.gold == "yes"
            columns[i, at : at + 2] = 2 * (yes and present), yes + present
        return {"f1": SummedFigure(columns, lambda sums: ratio(sums[..., ::2], sums[..., 1::2]).mean(-1))}


class Asked(NamedTuple):
    """Holds one question: whether the answer was yes, and whether the object is present."""

    yes: bool
    present: bool
    cluster: str

    @property
    def found(self) -> bool:
        """Returns whether a present object was found."""
        return self.yes and self.present


def yes_or_no(answer: str) -> str:
    """Returns "no" if `No`, `no` or `not` is a word before the first period; "yes" for all other answers."""
    words = answer.split(".")[0].replace(",", "").split(" ")
    return "no" if {"No", "no", "not"} & set(words) else "yes"


def _f1(subsets: Sequence[Sequence[Asked]], name: str) -> dict[str, Figure]:
    """Returns the mean over subsets of F1, the harmonic mean of precision and recall; yes is positive.

    It is 2 TP / (2 TP + FP + FN), and the denominator is the number of yes plus that of present objects. Chance is
    the F1 of answers that are all yes.
    """
    parts = [[(2 * a.found, a.yes + a.present, a.cluster) for a in asked] for asked in subsets]
    always = [[(2 * a.present, 1 + a.present, a.cluster) for a in asked] for asked in subsets]
    return {name: mean_of_ratios(parts, chance=mean_of_ratios(always).value)}


def _check(official: OfficialFiles, path: Path, records: Sequence[dict[str, Any]]) -> None:
    """Notes labels other than yes and no, and lines that are out of order."""
    for i, record in enumerate(records):
        if record["label"] not in ("yes", "no"):
            got = f"label {record['label']!r}"
            official.note(OFFICIAL_RECORD, path, f"line {i + 1}", got=got, expected="yes or no")
    ids = [record["question_id"] for record in records]
    if ids != sorted(ids):
        at = next(i for i in range(1, len(ids)) if ids[i] < ids[i - 1])
        got = f"question_id {ids[at]} after {ids[at - 1]}"
        official.note(
            OFFICIAL_VERSION, path, f"line {at + 1}", got=got, expected="the lines in official order"
        )


def _check_same(official: OfficialFiles, positives: dict[str, dict[tuple[str, str], Path | None]]) -> None:
    """Notes if the files do not ask about the same present objects: then they are of different versions."""
    if not all(positives.values()):
        return
    first, *others = positives.values()
    for other in others:
        if missing := [question for question in first if question not in other]:
            got = f"no question {named([f'{image}: {text}' for image, text in missing])}"
            path = next(path for path in other.values() if path is not None)
            official.note(
                OFFICIAL_VERSION, path, got=got, expected="the same present objects in all three files"
            )


def _unstable(items: Sequence[Item], verdicts: Sequence[Verdict]) -> dict[str, Figure]:
    """Returns the share of questions that are asked in several subsets and got different answers.

    The present objects are the same in all subsets. With deterministic decoding the share is 0, and true
    positives and false negatives are equal in all subsets.
    """
    asked = defaultdict(list)
    for item, verdict in zip(items, verdicts, strict=True):
        if item.gold == "yes":
            asked[item.cluster, item.prompt].append(verdict.parsed)
    several = [answers for answers in asked.values() if len(answers) > 1]
    if not several:
        return {}
    changed = sum(len(set(answers)) > 1 for answers in several)
    return {"unstable": Figure(value=changed / len(several), n=len(several))}
