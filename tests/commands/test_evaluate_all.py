"""All twelve benchmarks by one command, and what reads their answers afterwards."""

from __future__ import annotations

import json

import pytest

from lmmkit.evaluate.benchmarks.names import BENCHMARKS
from lmmkit.evaluate.questions import asking
from lmmkit.evaluate.questions.asking import Reply
from tests.test_cli import run

JUDGED = ("llava-wild", "mm-vet")


@pytest.fixture(scope="module")
def results(answering, official, tmp_path_factory):
    """Evaluates two models on all benchmarks, with what the command prints."""
    out, texts = tmp_path_factory.mktemp("all"), {}
    for model, word in (("a", "Yes"), ("b", "A")):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(asking, "replies", lambda chat_model, questions, word=word, **more: [Reply(word, (7,), False) for _ in questions])  # fmt: skip
            words = ["--on", ",".join(BENCHMARKS), "--files", official, "--out", out / model]
            texts[model] = run("eval", answering / "model" / "finetune", *words, "--published")
    return out, texts


def test_each_has_its_table_and_its_published_rows(results):
    out, texts = results
    assert list(json.loads((out / "a/results.json").read_text())) == list(BENCHMARKS)
    for name, made in BENCHMARKS.items():
        (title,) = [line for line in texts["a"].splitlines() if line == f"{made.title}, published"]
        table = texts["a"].split(title)[1].split("└")[0]
        assert "LLaVA-1.5" in table and "finetune" in table, name
        for caveat in made.caveats:
            assert caveat in " ".join(texts["a"].split()), name


def test_json_holds_all(answering, official, results):
    out, _ = results
    words = ["--on", ",".join(BENCHMARKS), "--files", official, "--out", out / "a", "--json"]
    text = run("eval", answering / "model" / "finetune", *words)
    found = json.loads(text[text.index("{") : text.rindex("\n}") + 2], parse_constant=pytest.fail)
    assert list(found) == list(BENCHMARKS)
    assert {name for name, result in found.items() if result["status"] == "pending-judge"} == set(JUDGED)


def test_scored_ones_are_compared_and_the_others_named(results):
    out, _ = results
    text = run("answers", "compare", out / "a", out / "b", "--json")
    found = json.loads(text[text.index("[") : text.rindex("]") + 1])
    assert sorted(each["task"] for each in found) == sorted(set(BENCHMARKS) - set(JUDGED))
    assert all(f"{name}: no scores" in text for name in JUDGED)
    assert "detectable" in run("answers", "compare", out / "a", out / "b")
    text = run("answers", "compare", out / "a", out / "b", "--on", ",".join(JUDGED), code=2)
    assert "answers/other-questions" in text


@pytest.mark.parametrize("name", BENCHMARKS)
def test_answers_are_shown(results, name):
    out, _ = results
    text = run("answers", "show", out / "a", name, "--which", "all")
    assert "Yes" in text and "(all)" in text
    run("answers", "show", out / "a", name)
