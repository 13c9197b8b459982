"""POPE: is an object in the image? Three subsets that differ in how the absent objects were chosen."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lmmkit.errors.benchmarks import OFFICIAL_RECORD, OFFICIAL_VERSION
from lmmkit.evaluate.benchmarks.benchmark import Benchmark, Item, Verdict
from lmmkit.evaluate.group_means import group_means
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
        for i, item in enumerate(items):
            by_subset[item.groups["subset"]].append(i)
        counted = {subset: Counts.of(items, verdicts, members) for subset, members in by_subset.items()}
        everything = Counts.of(items, verdicts, range(len(items)))
        out: dict[str, Figure] = {}
        if counted:
            out["f1"] = Figure(
                value=sum(each.f1 for each in counted.values()) / len(counted),
                chance=sum(each.f1_of_yes for each in counted.values()) / len(counted),
                n=len(items),
            )
        out |= {f"f1/{s}": Figure(value=c.f1, chance=c.f1_of_yes, n=c.n) for s, c in counted.items()}
        out |= group_means(
            "accuracy", items, [v.score or 0.0 for v in verdicts], kinds=["subset"],
            constants=[{item.gold: 1.0} for item in items],
        )  # fmt: skip
        for name in ("precision", "recall"):
            out[name] = Figure(value=getattr(everything, name), n=everything.n)
            out |= {f"{name}/{s}": Figure(value=getattr(c, name), n=c.n) for s, c in counted.items()}
        out |= group_means("yes", items, [float(v.parsed == "yes") for v in verdicts], kinds=["subset"])
        out |= group_means("lenient", items, [v.lenient or 0.0 for v in verdicts], kinds=["subset"])
        return out | _unstable(items, verdicts)


@dataclass(frozen=True)
class Counts:
    """Holds the true and false answers; yes is positive."""

    tp: int
    fp: int
    tn: int
    fn: int

    @classmethod
    def of(cls, items: Sequence[Item], verdicts: Sequence[Verdict], members: Sequence[int]) -> Counts:
        """Returns the counts of some items."""
        pairs = [(verdicts[i].parsed == "yes", items[i].gold == "yes") for i in members]
        return cls(
            *(pairs.count(pair) for pair in ((True, True), (True, False), (False, False), (False, True)))
        )

    @property
    def n(self) -> int:
        """Returns the number of answers."""
        return self.tp + self.fp + self.tn + self.fn

    @property
    def precision(self) -> float:
        """Returns the share of yes that are right; 0 if there is no yes."""
        return self.tp / (self.tp + self.fp) if self.tp + self.fp else 0.0

    @property
    def recall(self) -> float:
        """Returns the share of present objects that are found; 0 if there are none."""
        return self.tp / (self.tp + self.fn) if self.tp + self.fn else 0.0

    @property
    def f1(self) -> float:
        """Returns the harmonic mean of precision and recall; 0 if nothing is found."""
        return 2 * self.tp / (2 * self.tp + self.fp + self.fn) if self.tp else 0.0

    @property
    def f1_of_yes(self) -> float:
        """Returns F1 if every answer were yes."""
        positive = self.tp + self.fn
        return 2 * positive / (positive + self.n) if positive else 0.0


def yes_or_no(answer: str) -> str:
    """Returns "no" if `No`, `no` or `not` is a word before the first period; "yes" for all other answers."""
    words = answer.split(".")[0].replace(",", "").split(" ")
    return "no" if {"No", "no", "not"} & set(words) else "yes"


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
