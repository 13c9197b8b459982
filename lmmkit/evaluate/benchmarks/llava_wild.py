"""LLaVA-Bench (in the wild): open questions, graded by a language model next to a reference answer."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from lmmkit.errors import raise_all
from lmmkit.errors.benchmarks import OFFICIAL_RECORD
from lmmkit.evaluate.benchmarks.benchmark import Item, JudgedBenchmark
from lmmkit.evaluate.judge import Grade, Judge, Judged
from lmmkit.evaluate.official_files import OfficialFiles, upload_problems
from lmmkit.evaluate.stats import Z95
from lmmkit.evaluate.task import Figure

CATEGORIES = ("conv", "detail", "complex")
SYSTEM = "You are a helpful and precise assistant for checking the quality of the answer."
_QUESTION = {"question_id": (str, int), "image": str, "text": str, "category": str}
_CONTEXT = {"image": str, "caption": (str, list)}
_REFERENCE = {"question_id": (str, int), "text": str}
_RULE = {"role": str, "prompt": str}


class LlavaWild(JudgedBenchmark):
    """Scores the answers' grades, 1 to 10, as a share of those of the reference answers: the ratio of both means.

    Needs `questions.jsonl`, `context.jsonl`, `answers_gpt4.jsonl` and `images/` of the data set, and `rule.json` from
    LLaVA's repository (`llava/eval/table/`). A response without two grades is left out of the score and counted; the
    official script takes it for two equal grades, so that a judge that fails gives 100 %.
    """

    name = "llava-wild"
    title = "LLaVA-Bench (in the wild)"
    splits = ("test",)
    max_new_tokens = 1024
    headline = "score"
    caveats = (
        "Grades depend on the judge model: published numbers come from retired snapshots of GPT-4 and cannot be "
        "repeated. The standard error from 60 questions is about 4 points.",
    )

    def items(self, files: Path, *, split: str, cache: Path) -> Sequence[Item]:
        """Returns the questions in official order."""
        found = OfficialFiles(files, split=split, splits=self.splits)
        path, rules = found.find("questions.jsonl"), self._rules(found)
        rows = found.records(path, found.json_lines(path), _QUESTION, at="line", key="question_id")
        contexts = self._contexts(found)
        references = self._references(found, [row["question_id"] for row in rows])
        for row in rows:
            place = f"question {row['question_id']}"
            if row["category"] not in CATEGORIES:
                expected = f"one of {', '.join(CATEGORIES)}"
                found.note(
                    OFFICIAL_RECORD,
                    path or files,
                    place,
                    got=f"`category`: {row['category']!r}",
                    expected=expected,
                )
            if contexts and row["image"] not in contexts:
                got, expected = f"`image`: {row['image']!r}", "an image of context.jsonl"
                found.note(OFFICIAL_RECORD, path or files, place, got=got, expected=expected)
        images = found.images(found.find_folder("images"), [row["image"] for row in rows])
        found.check()
        return [
            Item(
                id=str(row["question_id"]),
                prompt=row["text"],
                images=(image,),
                gold=references[row["question_id"]],
                cluster=row["image"],
                groups={"category": row["category"]},
                columns={"context": contexts[row["image"]], **rules[f"llava_bench_{row['category']}"]},
            )
            for row, image in zip(rows, images, strict=True)
        ]

    def judge(self, items: Sequence[Item], answers: Mapping[str, str]) -> Judge:
        """Returns the judge of the official script."""
        raise_all(upload_problems("--on llava-wild", [item.id for item in items], answers))
        system = {"role": "system", "content": SYSTEM}
        return Judge(
            benchmark=self.name,
            model="gpt-4-0314",
            max_tokens=1024,
            temperatures=(0.2,),
            parse=official_pair,
            first={i.id: (system, {"role": "user", "content": _sections(i, answers[i.id])}) for i in items},
        )

    def judged_figures(self, items: Sequence[Item], judged: Judged) -> dict[str, Figure]:
        """Returns the ratio of the mean grades, that of each category and run, and both means; none without grades."""
        if judged.waiting or not items:
            return {}
        out = {}
        for detail in ("", *CATEGORIES):
            members = [item for item in items if detail in ("", item.groups["category"])]
            if members:
                out[f"score/{detail}" if detail else "score"] = _ratio(members, judged)
        runs = [_pairs(items, grades) for grades in judged.grades]
        for number, pairs in enumerate(runs, start=1):
            out[f"score/run {number}"] = Figure(value=_share(pairs), n=len(pairs))
        out["score/std over runs"] = Figure(
            value=float(np.std([_share(pairs) for pairs in runs])), n=len(runs)
        )
        for column, name in enumerate(("reference", "model")):
            grades = [pair[column] / 10 for pairs in runs for pair in pairs]
            out[name] = Figure(value=float(np.mean(grades)) if grades else math.nan, n=len(grades))
        known = {name: figure for name, figure in out.items() if math.isfinite(figure.value)}
        return known if self.headline in known else {}

    def _rules(self, found: OfficialFiles) -> dict[str, dict[str, str]]:
        """Returns the role and the prompt of each category's rule."""
        path = found.find("rule.json")
        value = found.json(path)
        needed = {f"llava_bench_{category}": dict for category in CATEGORIES}
        if path is None or value is None or not found.sound(path, "", value, needed):
            return {}
        return {name: value[name] for name in needed if found.sound(path, f"`{name}`", value[name], _RULE)}

    def _contexts(self, found: OfficialFiles) -> dict[str, str]:
        """Returns the caption of each image; several captions as lines."""
        path = found.find("context.jsonl")
        captions = {}
        for row in found.records(path, found.json_lines(path), _CONTEXT, at="line", key="image"):
            caption = row["caption"]
            captions[row["image"]] = caption if isinstance(caption, str) else "\n".join(map(str, caption))
        return captions

    def _references(self, found: OfficialFiles, asked: Sequence[str | int]) -> dict[str | int, str]:
        """Returns the reference answers by question."""
        path = found.find("answers_gpt4.jsonl")
        rows = found.records(path, found.json_lines(path), _REFERENCE, at="line", key="question_id")
        found.same_ids(path, [row["question_id"] for row in rows], asked, "questions.jsonl")
        return {row["question_id"]: row["text"] for row in rows}


def official_pair(text: str) -> Grade | None:
    """Returns the grades of the reference and of the answer, from the first line; None unless it is two numbers."""
    words = text.split("\n")[0].replace(",", " ").split(" ")
    try:
        reference, answer = map(float, words)
    except ValueError:
        return None
    # the official script writes -1 for a response without grades
    return (reference, answer) if 0 <= reference < math.inf and 0 <= answer < math.inf else None


def _sections(item: Item, answer: str) -> str:
    """Returns the message to the judge."""
    role = item.columns["role"]
    return (
        f"[Context]\n{item.columns['context']}\n\n[Question]\n{item.prompt}\n\n"
        f"[{role} 1]\n{item.gold}\n\n[End of {role} 1]\n\n"
        f"[{role} 2]\n{answer}\n\n[End of {role} 2]\n\n[System]\n{item.columns['prompt']}\n\n"
    )


def _pairs(items: Sequence[Item], grades: Mapping[str, Grade | None]) -> list[Grade]:
    return [grade for item in items if (grade := grades[item.id]) is not None]


def _share(pairs: Sequence[Grade]) -> float:
    """Returns the ratio of the means; NaN without pairs."""
    reference = sum(pair[0] for pair in pairs)
    return sum(pair[1] for pair in pairs) / reference if reference else math.nan


def _ratio(items: Sequence[Item], judged: Judged) -> Figure:
    """Returns the mean over runs of the ratio of means.

    The interval is that of the ratio of all grades, by the residuals' sums over the questions on one image.
    """
    runs = [_pairs(items, grades) for grades in judged.grades]
    value, share = (
        float(np.mean([_share(pairs) for pairs in runs])),
        _share([pair for pairs in runs for pair in pairs]),
    )
    residuals: dict[str, float] = {}
    total, scored = 0.0, set()
    for grades in judged.grades:
        for item in items:
            if (pair := grades[item.id]) is not None:
                residuals[item.cluster] = residuals.get(item.cluster, 0.0) + pair[1] - share * pair[0]
                total += pair[0]
                scored.add(item.id)
    images = len(residuals)
    if images < 2 or not total:
        return Figure(value=value, n=len(scored))
    half = Z95 * math.sqrt(sum(r * r for r in residuals.values()) * images / (images - 1)) / total
    return Figure(value=value, low=value - half, high=value + half, n=len(scored))
