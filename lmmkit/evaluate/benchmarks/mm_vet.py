"""MM-Vet: open questions that need several capabilities, graded by a language model."""

from __future__ import annotations

import ast
import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from lmmkit.errors import raise_all
from lmmkit.errors.benchmarks import OFFICIAL_RECORD
from lmmkit.evaluate.benchmarks.benchmark import Item, JudgedBenchmark
from lmmkit.evaluate.judge import Grade, Judge, Judged, Messages
from lmmkit.evaluate.official_files import OfficialFiles, upload_problems
from lmmkit.evaluate.stats import mean_with_interval
from lmmkit.evaluate.task import Figure

CAPABILITIES = ("rec", "ocr", "know", "gen", "spat", "math")
AGAIN = "\nPredict the correctness of the answer (digit): "  # added after a response without a grade
_SPEC = {"imagename": str, "question": str, "answer": str, "capability": list}


class MmVet(JudgedBenchmark):
    """Grades each answer from 0 to 1 by a judge that reads a table of examples, the official answer and the answer.

    Needs `mm-vet.json`, the images in `images/`, and `mm-vet_evaluator.py` from MM-Vet's repository, from which the
    examples are read without running it. A response without a grade is asked for again, four times at most with a
    rising temperature; then the grade is 0, as in the official script.
    """

    name = "mm-vet"
    title = "MM-Vet"
    splits = ("test",)
    max_new_tokens = 1024
    headline = "score"
    caveats = (
        "Grades depend on the judge model: published numbers come from retired snapshots of GPT-4 and cannot be "
        "repeated. The standard error from 218 questions is about 3 points, that of judging again about 0.2.",
    )

    def items(self, files: Path, *, split: str, cache: Path) -> Sequence[Item]:
        """Returns the questions in official order."""
        found = OfficialFiles(files, split=split, splits=self.splits)
        path = found.find("mm-vet.json")
        rows = found.table(path, found.json(path), _SPEC)
        for id_, row in rows.items():
            if not row["capability"] or any(each not in CAPABILITIES for each in row["capability"]):
                expected = f"some of {', '.join(CAPABILITIES)}"
                found.note(
                    OFFICIAL_RECORD,
                    path or files,
                    f"`{id_}`",
                    got=f"`capability`: {str(row['capability'])[:60]}",
                    expected=expected,
                )
        examples = self._examples(found)
        images = found.images(found.find_folder("images"), [row["imagename"] for row in rows.values()])
        found.check()
        return [
            Item(
                id=id_,
                prompt=row["question"],
                images=(image,),
                gold=row["answer"],
                cluster=row["imagename"],
                groups={"capabilities": "+".join(each for each in CAPABILITIES if each in row["capability"])},
                columns={"examples": examples},
            )
            for (id_, row), image in zip(rows.items(), images, strict=True)
        ]

    def upload(self, items: Sequence[Item], answers: Mapping[str, str]) -> Mapping[str, bytes]:
        """Returns the file that MM-Vet's evaluator reads: the answers by id."""
        raise_all(upload_problems("--upload", [item.id for item in items], answers))
        return {"mm-vet.json": json.dumps({item.id: answers[item.id] for item in items}, indent=2).encode()}

    def judge(self, items: Sequence[Item], answers: Mapping[str, str]) -> Judge:
        """Returns the judge of the official script."""
        raise_all(upload_problems("--on mm-vet", [item.id for item in items], answers))
        rows = {item.id: _table(item, answers[item.id]) for item in items}
        return Judge(
            benchmark=self.name,
            model="gpt-4-0613",
            max_tokens=3,
            temperatures=(0.0, 0.0, 0.5, 1.0, 1.5),
            parse=official_grade,
            first={id_: _message(text) for id_, text in rows.items()},
            again={id_: _message(text + AGAIN) for id_, text in rows.items()},
            failed=(0.0,),
        )

    def judged_figures(self, items: Sequence[Item], judged: Judged) -> dict[str, Figure]:
        """Returns the mean grade, of all questions, by capability, by set of capabilities and by run."""
        if judged.waiting or not items:
            return {}
        grades = np.array(
            [[(grades[item.id] or (0.0,))[0] for item in items] for grades in judged.grades]
        )  # runs x items; `failed` is the grade of a response without one
        means, clusters = grades.mean(axis=0), [item.cluster for item in items]
        sets = [item.groups["capabilities"] for item in items]
        needed = {each: [i for i, one in enumerate(sets) if each in one.split("+")] for each in CAPABILITIES}
        exact = {
            f"only {each}": [i for i, one in enumerate(sets) if one == each] for each in sorted(set(sets))
        }
        out = {}
        for detail, indices in {"": range(len(items)), **needed, **exact}.items():
            if indices:
                figure = mean_with_interval([means[i] for i in indices], [clusters[i] for i in indices])
                out[f"score/{detail}" if detail else "score"] = figure
        for number, run in enumerate(grades, start=1):
            out[f"score/run {number}"] = Figure(value=float(run.mean()), n=len(items))
        out["score/std over runs"] = Figure(value=float(grades.mean(axis=1).std()), n=len(grades))
        return out

    def _examples(self, found: OfficialFiles) -> str:
        """Returns the table of examples: the value of `prompt` in the official script."""
        path = found.find("mm-vet_evaluator.py")
        text = found.text(path)
        if path is None or not text:
            return ""
        try:
            body = ast.parse(text).body
        except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
            found.note(OFFICIAL_RECORD, path, got=f"no Python ({error})", expected="MM-Vet's evaluator")
            return ""
        for node in body:
            match node:
                case ast.Assign(targets=[ast.Name(id="prompt")], value=ast.Constant(value=str() as examples)):
                    return examples
        found.note(
            OFFICIAL_RECORD, path, got="no text `prompt`", expected="the table of examples as `prompt`"
        )
        return ""


def official_grade(text: str) -> Grade | None:
    """Returns the number from 0 to 1 in front of the first space; None if there is none."""
    try:
        grade = float(text.split(" ")[0].strip())
    except ValueError:
        return None
    return (grade,) if 0.0 <= grade <= 1.0 else None


def _table(item: Item, answer: str) -> str:
    """Returns the examples and the row that the judge completes."""
    official = item.gold.replace("<AND>", " <AND> ").replace("<OR>", " <OR> ")
    return f"{item.columns['examples']}\n{item.prompt} | {official} | {answer} | "


def _message(text: str) -> Messages:
    return ({"role": "user", "content": text},)
