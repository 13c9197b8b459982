"""`lmmkit eval` prints the figures before it writes them, and shows how far it is."""

from __future__ import annotations

import json

import pytest
from rich.console import Console
from typer.testing import CliRunner

from lmmkit.cli import app
from lmmkit.commands.evaluate import aligned, notes
from lmmkit.commands.support import common
from lmmkit.evaluate.questions.questions_task import QuestionsTask
from lmmkit.evaluate.run import evaluate
from lmmkit.evaluate.task import Figure
from lmmkit.progress import shown_on
from lmmkit.recipe import Task, read_recipe, read_text
from lmmkit.training.run import train
from tests.conftest import PLAIN
from tests.test_cli import run
from tests.test_progress import Recorder


@pytest.fixture(scope="module")
def trained(tmp_path_factory, scenes):
    steps = [f"stages.{stage}.length.steps=1" for stage in ("pretrain", "finetune")]
    recipe = read_text(PLAIN, name="tiny.yaml", overrides=steps, root=scenes)
    return train(recipe, out=tmp_path_factory.mktemp("eval") / "run").run


def test_results_that_cannot_be_written_are_printed(trained):
    trained.results.mkdir()  # a file of this name cannot be written
    try:
        text = run("eval", trained.path, "--on", "answers", code=3)
        assert text.index("majority") < text.index("run/cannot-write"), "the table comes first"
        words = ["eval", str(trained.path), "--on", "answers", "--json"]
        result = CliRunner().invoke(app, words)
        assert result.exit_code == 3 and "accuracy" in json.loads(result.stdout)["answers"]
    finally:
        trained.results.rmdir()


def test_an_evaluation_shows_its_progress(trained, scenes, tmp_path):
    recorder = Recorder()
    recipe = read_recipe(trained.resolved, root=scenes)
    with shown_on(recorder):
        results = evaluate(trained, recipe, out=tmp_path)
    n = results["answers"].figures["accuracy"].n
    begun = [call[1:] for call in recorder.calls if call[0] == "begin"]
    assert [b for b in begun if b[0] in ("reading images", "answers: answers")][:2] == [
        ("reading images", n, "samples"), ("answers: answers", 3 * n, "questions")
    ]  # fmt: skip
    assert "measuring terms" in [title for title, *_ in begun]

    def moves(*begun):
        number = recorder.calls.index(("begin", *begun)) + 1
        return [call[2] for call in recorder.calls if call[0] == "move" and call[1] == number]

    asked, whole = moves("answers: answers", 3 * n, "questions"), moves("evaluation", len(results))
    assert asked == sorted(asked) and 0 <= asked[0] < 3 * n and asked[-1] == 3 * n
    assert whole == sorted(whole) and 0 < whole[0] < 0.5 and whole[-1] == len(results)
    assert len(set(whole)) > len(results) + 2, "it moves inside the tasks"
    assert len([c for c in recorder.calls if c[0] == "end"]) == len(begun)


def test_answers_that_differ_from_those_to_questions_alone_are_printed():
    differ = [
        {"condition": "own", "id": f"q{i}", "token": i or None, "gap": 2.5e-6 if i else None}
        for i in range(12)
    ]
    lines = list(notes({"alone": {"asked": 1500, "differ": differ}}))
    assert lines[:3] == [
        "1,500 questions asked alone: 12 answers differ", "differs: q0 (own) its batch now gives another answer",
        "differs: q1 (own) from token 1, the two best logits 2.5e-06 apart",
    ]  # fmt: skip
    assert len(lines) == 11 and list(notes({})) == []


@pytest.mark.parametrize("width", [60, 80, 120])
@pytest.mark.parametrize(
    "controls", [("", "_blank", "_swapped"), ("", "_blank", "_black", "_swapped", "_none")]
)
def test_the_table_of_answers_breaks_no_word(width, controls, monkeypatch):
    console = Console(width=width, record=True, soft_wrap=True, markup=False)
    monkeypatch.setattr(common, "out", console)
    figure = Figure(value=0.7612, low=0.7401, high=0.7823, chance=0.25, n=1500)
    names = [f"accuracy{c}{d}" for c in controls for d in ("", "/relation", "/presence")]
    lines = QuestionsTask("answers", Task(data="x")).table(dict.fromkeys(names, figure))
    common.print_table(aligned("answers", lines))
    text = console.export_text()
    assert max(map(len, text.splitlines())) <= width
    for word in ("questions", "swapped", "majority", "presence", "76.1", "(74.0-78.2)", "1500"):
        assert word in text, (width, word, text)
