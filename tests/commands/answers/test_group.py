"""lmmkit answers: score, compare, show, judge."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from lmmkit.commands.answers.group import _comparison_lines
from lmmkit.commands.evaluate import aligned
from lmmkit.commands.support.common import print_table
from lmmkit.evaluate.answers.answers_file import AnswersFolder
from lmmkit.evaluate.answers.compare import Comparison
from lmmkit.evaluate.answers.foreign import ForeignAnswer
from lmmkit.evaluate.answers.locate import task_folders
from lmmkit.evaluate.answers.score import matched, score_answers
from lmmkit.evaluate.benchmarks.names import BENCHMARKS
from lmmkit.evaluate.task import Figure
from tests.conftest import PLAIN
from tests.support.toy_benchmark import Toy, write_toy
from tests.test_cli import run as command


@pytest.fixture(autouse=True)
def toy(monkeypatch, tmp_path):
    monkeypatch.setitem(BENCHMARKS, "toy", Toy)
    for name in ("x.png", "y.png"):
        (tmp_path / name).write_bytes(b"image")
    write_toy(tmp_path / "files" / "toy", [tmp_path / "x.png", tmp_path / "y.png"])


def write_answers(folder: Path, files: Path, text) -> None:
    """Writes the folder of a task as `lmmkit eval` does, with the answers `text(item)`."""
    items = Toy().items(files / "toy", split="test", cache=files)
    found = matched(items, [ForeignAnswer(text(item), item.id) for item in items], "x")
    kept = AnswersFolder(folder, {item.id: i for i, item in enumerate(items)})
    kept.begin({"task": "toy"})
    with kept.appender(0) as file:
        file.add(score_answers(Toy(), items, found, task="toy", split="test").answers.values())


def run(*words, code=0):
    return command("answers", *words, code=code)


def test_score_prints_the_coverage_beside_the_score(tmp_path):
    (tmp_path / "a.jsonl").write_text(
        '{"question_id": "q0-0", "text": "a"}\n{"question_id": "q0-1", "text": "b"}\n{"question_id": "z", "text": "b"}\n'
    )
    words = ["score", "toy", "--files", tmp_path / "files", "--answers", tmp_path / "a.jsonl"]
    text = run(*words)
    (line,) = [line for line in text.splitlines() if "accuracy" in line]
    assert "100.0" in line and "2 of 7" in line, "the score is that of the answers, beside their number"
    assert "jsonl, matched by id" in text and "2 of 7 answered" in text and "5 without an answer" in text
    assert "no answer of kind: k2" in text
    assert "1 of no question, not scored: z" in text
    facts = json.loads(run(*words, "--json"))
    assert facts["coverage"]["missing"] == 5 and (facts["accuracy"]["n"], facts["accuracy"]["of"]) == (2, 7)
    assert "It is a toy." in run(*words, "--published")


@pytest.mark.parametrize(("words", "code"), [
    (["score", "toi", "--files", "{files}", "--answers", "a"], "evaluate/unknown-task"),
    (["score", "toy", "--files", "{files}/none", "--answers", "a"], "answers/no-files"),
    (["score", "toy", "--files", "{files}", "--answers", "nothing.json"], "answers/format"),
    (["show", "{files}", "toy"], "answers/no-answers"),
    (["compare", "{files}", "{files}"], "answers/no-answers"),
    (["judge", "{files}", "toy", "--files", "{files}"], "answers/no-answers"),
])  # fmt: skip
def test_what_is_refused(tmp_path, words, code):
    assert code in run(*(word.format(files=tmp_path / "files") for word in words), code=2)


def test_two_results_are_comparison_lines(tmp_path):
    write_answers(tmp_path / "A" / "toy", tmp_path / "files", lambda item: item.gold)
    write_answers(tmp_path / "B" / "toy", tmp_path / "files", lambda item: "a")
    text = run("compare", tmp_path / "A", tmp_path / "B")
    assert "100.0" in text and "71.4" in text and "B - A" in text and "-28.6" in text and "0.5" in text
    (found,) = json.loads(run("compare", tmp_path / "A", tmp_path / "B", "--on", "toy", "--json"))
    assert (found["only_first"], found["only_second"], found["n"]) == (2, 0, 7) and found[
        "p"
    ] == pytest.approx(0.5)
    assert json.loads(run("compare", tmp_path / "A" / "toy", tmp_path / "B" / "toy", "--json")) == [found]
    assert "answers/no-answers" in run("compare", tmp_path / "A", tmp_path / "B", "--on", "gqa", code=2)
    for itself in ("A", "A/toy"):
        assert "answers/same" in run("compare", tmp_path / itself, tmp_path / "B" / ".." / itself, code=2)


def test_the_table_of_a_comparison_fits_into_80_columns(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    longest = Comparison(
        task="scienceqa", first=0.1234, second=0.9876, difference=Figure(value=-0.1234, low=-0.2345, high=0.2345, n=9),
        only_first=1_234, only_second=2_345, p=1e-9, p_holm=0.0314, detectable=0.1234, n=8_910, left_out=0,
    )  # fmt: skip
    whole = replace(longest, first=1.0, second=1.0, task="pope", p=1.0, detectable=None)
    print_table(aligned("A: a\nB: b", _comparison_lines([longest, whole])))
    lines = capsys.readouterr().out.splitlines()
    assert max(map(len, lines)) <= 80
    assert any(line.split() == [
        "scienceqa", "12.3", "98.8", "-12.3", "-23.4", "to", "+23.4", "1,234", "2,345", "<.001", "0.031", "12.3", "8,910",
    ] for line in lines)  # fmt: skip


def test_answers_are_shown(tmp_path):
    write_answers(tmp_path / "A" / "toy", tmp_path / "files", lambda item: "b")
    text = run("show", tmp_path / "A", "toy", "-n", "2")
    assert "q0-0" in text and "q0-2" in text and "q0-1" not in text and "2 of 5 (wrong)" in text
    assert "7 of 7 (all)" in run("show", tmp_path / "A" / "toy", "toy", "--which", "all")
    assert "0 of 0 (unparsed)" in run("show", tmp_path / "A", "toy", "--which", "unparsed")


def test_a_benchmark_without_a_judge(tmp_path):
    write_answers(tmp_path / "A" / "toy", tmp_path / "files", lambda item: "b")
    assert "without a judge" in run("judge", tmp_path / "A", "toy", "--files", tmp_path / "files")


def test_of_a_run_the_latest_stage_with_answers_counts(tmp_path):
    run_folder = tmp_path / "run"
    run_folder.mkdir()
    (run_folder / "run.json").write_text("{}")
    (run_folder / "recipe.resolved.yaml").write_text(PLAIN)
    for stage in ("finetune", "pretrain"):
        write_answers(run_folder / "answers" / stage / "toy", tmp_path / "files", lambda item: "b")
    write_answers(run_folder / "answers" / "pretrain" / "other", tmp_path / "files", lambda item: "b")
    folders = task_folders(run_folder)
    assert {name: path.parent.name for name, path in folders.items()} == {
        "toy": "finetune",
        "other": "pretrain",
    }
