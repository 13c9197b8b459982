"""Tables in the form of VLMEvalKit, made by hand, are scored as the same answers by official ids."""

from __future__ import annotations

import csv
from pathlib import Path

import openpyxl
import pytest

from lmmkit.evaluate.answers.foreign import ForeignAnswer, read_foreign
from lmmkit.evaluate.answers.score import matched, score_answers
from lmmkit.evaluate.benchmarks.mmbench import MMBench
from lmmkit.evaluate.benchmarks.mme import Mme
from lmmkit.evaluate.benchmarks.pope import Pope
from lmmkit.evaluate.benchmarks.seed import SeedBench
from tests.evaluate.benchmarks import test_mmbench, test_mme, test_pope, test_seed


def table(path: Path, rows: list[dict]) -> Path:
    """Writes rows as a table with their keys as columns."""
    names = list(dict.fromkeys(name for row in rows for name in row))
    if path.suffix == ".xlsx":
        book = openpyxl.Workbook()
        for row in (names, *([row.get(name) for name in names] for row in rows)):
            book.active.append(row)
        book.save(path)
    else:
        with path.open("w", newline="") as file:
            writer = csv.DictWriter(file, names, delimiter="\t")
            writer.writeheader()
            writer.writerows(rows)
    return path


def of_mmbench(folder):
    """Returns a benchmark, the rows of a table with answers, and the same answers by official id."""
    rows = test_mmbench.rotations(241, ["red", "blue", "green"], hint="Look.") + test_mmbench.rotations(
        7, ["yes", "no"]
    )
    test_mmbench.write(folder, rows)
    answers = {row["index"]: "A" if row["index"] == "1000007" else row["answer"] for row in rows}
    names = ("index", "question", "hint", "A", "B", "C", "D", "answer", "category", "split", "l2-category")
    kept = [{name: row[name] or None for name in names} for row in rows]
    return (
        MMBench(),
        [row | {"index": int(row["index"]), "prediction": answers[str(row["index"])]} for row in kept],
        answers,
    )


def of_mme(folder):
    """Writes images of one name in several subtasks, as in the release."""
    test_mme.write(folder)
    items, rows = test_mme.load(folder), []
    answers = {item.id: "Yes" if i % 3 else "No" for i, item in enumerate(items)}
    for number, item in enumerate(reversed(items)):  # not in official order
        rows.append({
            "index": number, "category": item.groups["subtask"], "question": item.columns["question"],
            "answer": item.columns["label"], "image_path": f"{item.groups['subtask']}/{Path(item.images[0]).name}",
            "prediction": answers[item.id],
        })  # fmt: skip
    return Mme(), rows, answers


def of_pope(folder):
    """Writes a question of several subsets once, as the table does."""
    test_pope.write(folder, test_pope.files())
    items = Pope().items(folder, split="coco", cache=folder)
    rows, answers = {}, {}
    for item in items:
        question = item.prompt.split("\n")[0]
        key = (item.images, question)
        row = rows.setdefault(key, {"index": len(rows), "question": question, "answer": item.gold.title(), "category": [], "image_source": Path(item.images[0]).stem + ".jpg"})  # fmt: skip
        row["category"].append(item.groups["subset"])
        row["prediction"] = answers[item.id] = "Yes" if "dog" in question or "fork" in question else "No"
    return Pope(), [row | {"category": ",".join(row["category"])} for row in rows.values()], answers


def of_seed(folder):
    """Asks the same question about several images, with other options or with the same ones."""
    choices = [("1", "2"), ("2", "1"), ("7", "8"), ("7", "8")]
    questions = [test_seed.question(str(i), choice_a=a, choice_b=b) for i, (a, b) in enumerate(choices)]
    test_seed.write(folder, questions)
    answers = {each["question_id"]: "ABBA"[i] for i, each in enumerate(questions)}
    rows = [
        {"index": 900 + i, "question": each["question"], "category": "Instances Counting", "answer": each["answer"],
         **{letter.upper(): each[f"choice_{letter}"] for letter in "abcd"}, "prediction": answers[each["question_id"]]}
        for i, each in enumerate(questions)
    ]  # fmt: skip
    return SeedBench(), rows, answers


CASES = {
    "mmbench": (of_mmbench, "id", 0),
    "mme": (of_mme, "image", 0),
    "pope": (of_pope, "image", 0),
    "seed": (of_seed, "question and options", 2),
}


@pytest.mark.parametrize("suffix", [".xlsx", ".tsv"])
@pytest.mark.parametrize("name", CASES)
def test_a_table_is_scored_as_its_answers(tmp_path, name, suffix):
    made, by, ordered = CASES[name]
    folder = tmp_path / "files"
    folder.mkdir()
    benchmark, rows, answers = made(folder)
    items = benchmark.items(folder, split=benchmark.splits[0], cache=folder)
    form, found = read_foreign(table(tmp_path / f"model_{name}{suffix}", rows))
    fitting = matched(items, found, "x")
    assert form == "vlmevalkit" and fitting.by == by and fitting.texts == answers
    assert (fitting.missing, fitting.extra, len(fitting.ordered)) == ((), (), ordered)
    official = matched(items, [ForeignAnswer(text, id) for id, text in answers.items()], "x")
    both = [
        score_answers(benchmark, items, each, task=name, split="x").figures for each in (fitting, official)
    ]
    assert both[0] == both[1] and both[0][benchmark.headline].value > 0


def test_a_row_that_failed_is_no_answer(tmp_path):
    folder = tmp_path / "files"
    folder.mkdir()
    benchmark, rows, answers = of_mmbench(folder)
    rows[1]["prediction"] = "Failed to obtain answer via API."
    items = benchmark.items(folder, split="dev", cache=folder)
    fitting = matched(items, read_foreign(table(tmp_path / "a.xlsx", rows))[1], "x")
    assert fitting.failed == fitting.missing == ("1000241",) and len(fitting.texts) == len(answers) - 1
    figures = score_answers(benchmark, items, fitting, task="mmbench", split="dev").figures
    assert figures["circular"].n == 1 and figures["vanilla"].n == 2
