"""GQA: compositional questions about images, with one right answer each."""

from __future__ import annotations

import string
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from lmmkit.errors.benchmarks import OFFICIAL_RECORD
from lmmkit.evaluate.benchmarks.benchmark import Benchmark, Item, Verdict
from lmmkit.evaluate.group_means import group_means
from lmmkit.evaluate.official_files import OfficialFiles
from lmmkit.evaluate.task import Figure
from lmmkit.evaluate.vqa_text import ASK_SHORT

_SPEC = {
    "question": str, "imageId": str, "answer": str, "isBalanced": bool, "types": dict, "groups": dict,
    "semantic": list,
}  # fmt: skip
_TYPES = {"structural": str, "semantic": str}
_STEP = {"operation": str, "argument": str}
_NO_STEPS = ("exist", "query: name", "choose name")  # the last operation, which asks but does not reason
_PUNCTUATION = str.maketrans("", "", string.punctuation)


class Gqa(Benchmark):
    """Reads `testdev_balanced_questions.json`, and the images in `images/`."""

    name = "gqa"
    title = "GQA"
    splits = ("testdev",)
    max_new_tokens = 128
    headline = "accuracy"
    caveats = (
        "LLaVA-1.5 is trained on questions of GQA.",
        "The 12,578 questions are about 398 images only.",
        "`distribution` is a distance from the distribution of right answers: lower is better.",
    )

    def items(self, files: Path, *, split: str, cache: Path) -> Sequence[Item]:
        """Returns the balanced questions."""
        official = OfficialFiles(files, split=split, splits=self.splits)
        folders = ("", "questions", "questions1.2", "data", "data/questions1.2")
        path = official.find("testdev_balanced_questions.json", under=folders)
        questions = official.table(path, official.json(path), _SPEC)
        if path is not None:
            questions = {id: q for id, q in questions.items() if _is_sound(official, path, id, q)}
        questions = {id: question for id, question in questions.items() if question["isBalanced"]}
        folder = official.find_folder("images", "data/images")
        images = official.images(folder, [f"{question['imageId']}.jpg" for question in questions.values()])
        official.check()
        return [
            Item(
                id=id, prompt=f"{question['question']}\n{ASK_SHORT}", images=(image,), gold=question["answer"],
                cluster=question["imageId"], groups=_groups(question),
            )
            for (id, question), image in zip(questions.items(), images, strict=True)
        ]  # fmt: skip

    def verdict(self, item: Item, answer: str) -> Verdict:
        """Compares the answer in lower case without periods at its end; the lenient parser ignores punctuation."""
        parsed = answer.rstrip(".").lower()
        return Verdict(
            parsed=parsed or None, score=float(parsed == item.gold), lenient=float(_plain(answer) == _plain(item.gold))
        )  # fmt: skip

    def figures(self, items: Sequence[Item], verdicts: Sequence[Verdict]) -> dict[str, Figure]:
        """Returns the accuracy, of binary and open questions and of each type too, and the distribution."""
        out = group_means(
            "accuracy", items, [verdict.score or 0.0 for verdict in verdicts],
            kinds=["answer", "structural", "semantic", "steps", "length"],
            constants=[{item.gold: 1.0} for item in items],
        )  # fmt: skip
        out |= group_means("lenient", items, [verdict.lenient or 0.0 for verdict in verdicts])
        return out | _distribution(items, verdicts)


def _is_sound(official: OfficialFiles, path: Path, id: str, question: Mapping[str, Any]) -> bool:
    """Returns whether the parts of a question have the right types; notes it if not."""
    if not official.sound(path, f"`{id}`.types", question["types"], _TYPES):
        return False
    steps = enumerate(question["semantic"])
    if not all(official.sound(path, f"`{id}`.semantic[{i}]", step, _STEP) for i, step in steps):
        return False
    group = question["groups"].get("global")
    if group is not None and not isinstance(group, str):
        official.note(
            OFFICIAL_RECORD, path, f"`{id}`.groups", got=f"{group!r:.40}", expected="a text or null"
        )
        return False
    return True


def _groups(question: Mapping[str, Any]) -> dict[str, str]:
    types, kind = question["types"], question["groups"].get("global")
    operations = (f"{step['operation']}: {step['argument']}" for step in question["semantic"])
    steps = sum(not any(name in operation for name in _NO_STEPS) for operation in operations)
    return {
        "answer": "open" if types["structural"] == "query" else "binary",
        "structural": f"structural {types['structural']}",
        "semantic": f"semantic {types['semantic']}",
        "steps": _count(steps, "step"),
        "length": _count(len(question["question"].split()), "word"),
    } | ({} if kind is None else {"global": kind})


def _count(n: int, noun: str) -> str:
    return f"{n} {noun}{'' if n == 1 else 's'}"


def _plain(text: str) -> str:
    return text.lower().translate(_PUNCTUATION).strip()


def _distribution(items: Sequence[Item], verdicts: Sequence[Verdict]) -> dict[str, Figure]:
    """Returns the mean chi-square distance of the answers' distribution in each global group, over 100."""
    gold: dict[str, Counter[str]] = defaultdict(Counter)
    answered: dict[str, Counter[str]] = defaultdict(Counter)
    for item, verdict in zip(items, verdicts, strict=True):
        if "global" in item.groups:
            gold[item.groups["global"]][item.gold] += 1
            answered[item.groups["global"]][verdict.parsed or ""] += 1
    n = sum(counts.total() for counts in gold.values())
    if not n:
        return {}
    total = sum(
        counts.total() * sum((answered[group][answer] - e) ** 2 / e for answer, e in counts.items())
        for group, counts in gold.items()
    )
    return {"distribution": Figure(value=total / n / 100, n=n)}
