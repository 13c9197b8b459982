"""A task from its questions to its files: what is asked, kept, scored and refused."""

from __future__ import annotations

import json
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from PIL import Image

from lmmkit.api.model_info import ImageSpec
from lmmkit.errors import UserError
from lmmkit.evaluate.answers.answers_file import read_answers
from lmmkit.evaluate.answers.outcome import facts_in
from lmmkit.evaluate.keep import Keep
from lmmkit.evaluate.questions.answering import (
    answer_questions,
    benchmark_questions,
    limited,
    model_facts,
)
from tests.support.toy_benchmark import Toy, answering_with, write_toy

MODEL = SimpleNamespace(
    prepared=SimpleNamespace(dims=SimpleNamespace(image=ImageSpec(size=8, grid=(1, 1), width=1))),
    objective=torch.nn.Linear(1, 1), device=torch.device("cpu"),
)  # fmt: skip


@pytest.fixture
def toy(tmp_path):
    images = [tmp_path / f"{name}.png" for name in "xyz"]
    for i, path in enumerate(images):
        Image.new("RGB", (9 + i, 9)).save(path)
    write_toy(tmp_path / "toy", images)
    return tmp_path / "toy"


def questions(toy, split="test", **more):
    made = Toy()
    items = made.items(toy, split=split, cache=toy)
    return benchmark_questions(
        made, items, task="toy", split=split, template="vicuna_v1", image_fit="pad", **more
    )


def kept(tmp_path, **more) -> Keep:
    return Keep(folder=tmp_path / "out", model={"checkpoint": "c1", "folder": "/m"}, **more)


def looks(question):
    """Answers right with the own image of odd numbers, "b" without one and "a" otherwise."""
    condition, id = question.key
    images = question.sample.images
    if condition == "own" and images:
        return "b" if id.endswith("1") else "a"
    return "a" if images else "b"


def test_figures_of_a_task_and_its_controls(toy, monkeypatch):
    answering_with(monkeypatch, looks)
    found = answer_questions(MODEL, questions(toy), controls=("blank", "swapped", "none"))
    # items q*-0 and q*-2 have the answer "a", q*-1 has "b"; `text` has "a"
    assert found.figures["accuracy"].value == pytest.approx(9 / 10), "all but the question without an image"
    assert found.figures["accuracy_blank"].value == pytest.approx(6 / 10)
    assert found.figures["accuracy_none"].value == pytest.approx(3 / 10)
    assert found.figures["visual_gain"].value == pytest.approx(3 / 9) and found.figures["visual_gain"].n == 9
    assert found.figures["leakage"].value == pytest.approx((6 - 3) / 9)
    assert found.figures["visual_gain_swapped"].value == pytest.approx(3 / 9)
    assert found.figures["changed_blank"].value == pytest.approx(3 / 9)
    assert found.figures["changed_none"].value == pytest.approx(6 / 9)
    for name in ("visual_gain", "leakage"):
        assert found.figures[name].low <= found.figures[name].value <= found.figures[name].high
    assert found.status == "scored" and found.coverage["answered"] == 10
    assert found.coverage["parsed"] == {"a": 6, "b": 4}


def test_each_condition_shows_other_images(toy, monkeypatch):
    seen = {}
    answering_with(monkeypatch, lambda q: seen.setdefault(q.key, q.sample) and "a")
    answer_questions(MODEL, questions(toy), controls=("blank", "black", "swapped", "none"))
    own = {id: sample for (condition, id), sample in seen.items() if condition == "own"}
    assert len(own) == 10 and own["text"].images == () and own["q0-0"].turns[0].images == 1
    for (condition, id), sample in seen.items():
        if condition == "own":
            continue
        assert id != "text", "without an image all conditions are one"
        (turn,) = sample.turns
        assert turn.text == own[id].turns[0].text
        if condition == "none":
            assert sample.images == () and turn.images == 0
        elif condition == "swapped":
            assert sample.images[0].edit is None and sample.images != own[id].images
        else:
            assert sample.images[0].edit.kind == {"blank": "mean", "black": "black"}[condition]


def test_with_one_set_of_images_there_is_nothing_to_swap(toy, monkeypatch):
    answering_with(monkeypatch, lambda q: "a")
    asked = questions(toy)
    one = limited(asked, 3)
    assert {sample.images for sample in one.samples} == {asked.samples[0].images}
    figures = answer_questions(MODEL, one, controls=("swapped",)).figures
    assert set(figures) == {"accuracy"}


def test_every_answer_is_in_the_file(toy, tmp_path, monkeypatch):
    answering_with(monkeypatch, looks)
    keep = kept(tmp_path)
    found = answer_questions(MODEL, questions(toy), controls=("blank",), keep=keep)
    lines = read_answers(tmp_path / "out" / "answers.jsonl")
    assert [a.key for a in lines[:3]] == [("own", "q0-0"), ("own", "q0-1"), ("own", "q0-2")]
    assert {a.key: a for a in lines} == found.answers and len(lines) == 19
    first = lines[0]
    assert (first.raw, first.parsed, first.gold, first.score, first.n_new_tokens) == ("a", "a", "a", 1.0, 2)
    assert (first.cluster, first.groups, first.row, first.split) == ("0.png", {"kind": "k0"}, 0, "test")
    header = json.loads((tmp_path / "out" / "answers.json").read_text())
    assert header["decoding"] == {"kind": "greedy", "max_new_tokens": 5} and header["dtype"] == "float32"
    assert header["data_sha256"].startswith(first.data) and header["model"] == "c1"
    summary = json.loads((tmp_path / "out" / "summary.json").read_text())
    assert summary["caveats"] == ["It is a toy."] and summary["figures"]["accuracy"]["n"] == 10
    assert facts_in(tmp_path / "out") == found.facts()


@pytest.mark.parametrize("batches", [0, 1, 3, 6])
def test_after_a_death_each_question_is_asked_once(toy, tmp_path, monkeypatch, batches):
    class Killed(Exception):
        pass

    def dies(question):
        if len(asked) > 2 * batches:
            raise Killed
        return looks(question)

    asked: list = []
    answering_with(monkeypatch, dies, asked)
    keep = kept(tmp_path)
    with pytest.raises(Killed):
        answer_questions(MODEL, questions(toy), controls=("blank",), keep=keep)
    file = tmp_path / "out" / "answers.jsonl"
    before = [a.key for a in read_answers(file)]
    assert len(before) == 2 * batches
    if before:
        file.write_bytes(file.read_bytes()[:-9])  # the last line is torn
        before.pop()
    again: list = []
    answering_with(monkeypatch, looks, again)
    found = answer_questions(MODEL, questions(toy), controls=("blank",), keep=keep)
    assert sorted([*before, *again]) == sorted(found.answers) and not set(before) & set(again)
    whole = kept(tmp_path / "whole")
    answer_questions(MODEL, questions(toy), controls=("blank",), keep=whole)
    assert file.read_bytes() == (tmp_path / "whole" / "out" / "answers.jsonl").read_bytes()


def test_finished_answers_are_kept_when_more_is_asked(toy, tmp_path, monkeypatch):
    keep = kept(tmp_path)
    asked: list = []
    answering_with(monkeypatch, looks, asked)
    found = answer_questions(MODEL, limited(questions(toy), 4), keep=keep)
    assert len(asked) == 4 and found.figures["accuracy"].n == 4
    found = answer_questions(MODEL, questions(toy), keep=keep)
    assert len(asked) == 10 and found.figures["accuracy"].n == 10
    answer_questions(MODEL, questions(toy), controls=("none",), keep=keep)
    assert len(asked) == 19
    found = answer_questions(MODEL, limited(questions(toy), 4), keep=keep)
    assert len(asked) == 19 and found.coverage["expected"] == 4, "the others stay in the file"
    assert len(read_answers(tmp_path / "out" / "answers.jsonl")) == 19


def test_another_model_prompt_or_data_is_refused(toy, tmp_path, monkeypatch):
    answering_with(monkeypatch, looks)
    answer_questions(MODEL, questions(toy), keep=kept(tmp_path))
    other = replace(kept(tmp_path), model={"checkpoint": "c2", "folder": "/m"})
    with pytest.raises(UserError, match="answers/changed"):
        answer_questions(MODEL, questions(toy), keep=other)
    with pytest.raises(UserError, match="max_new_tokens"):
        answer_questions(MODEL, questions(toy, max_new_tokens=9), keep=kept(tmp_path))
    lines = (toy / "toy.jsonl").read_text()
    (toy / "toy.jsonl").write_text(lines.replace("what?", "why?"))
    with pytest.raises(UserError, match="data_sha256"):
        answer_questions(MODEL, questions(toy), keep=kept(tmp_path))
    (toy / "toy.jsonl").write_text(lines)
    answer_questions(MODEL, questions(toy), keep=kept(tmp_path))


def test_an_answer_to_another_prompt_is_refused(toy, tmp_path, monkeypatch):
    answering_with(monkeypatch, looks)
    answer_questions(MODEL, questions(toy), keep=kept(tmp_path))
    file = tmp_path / "out" / "answers.jsonl"
    lines = [json.loads(line) for line in file.read_text().splitlines()]
    lines[2]["prompt_sha"] = "0" * 16
    file.write_text("".join(json.dumps(line) + "\n" for line in lines))
    with pytest.raises(UserError, match="answers/changed") as error:
        answer_questions(MODEL, questions(toy), keep=kept(tmp_path))
    assert "q0-2" in error.value.problems[0].where


def test_moved_files_are_the_same_data(toy, tmp_path, monkeypatch):
    answering_with(monkeypatch, looks)
    answer_questions(MODEL, questions(toy), keep=kept(tmp_path))
    asked: list = []
    answering_with(monkeypatch, looks, asked)
    answer_questions(MODEL, questions(toy.rename(tmp_path / "elsewhere")), keep=kept(tmp_path))
    assert asked == []


def test_without_public_answers_there_are_files_for_the_server_and_no_score(toy, tmp_path, monkeypatch):
    answering_with(monkeypatch, lambda q: "" if q.key[1] == "text" else looks(q).upper())
    found = answer_questions(MODEL, questions(toy, "server"), controls=("blank",), keep=kept(tmp_path))
    assert found.status == "pending-server" and set(found.figures) == {"changed_blank"}
    assert all(answer.score is None for answer in found.answers.values())
    upload = tmp_path / "out" / "upload"
    content = (upload / "toy.json").read_bytes()
    assert json.loads(content)["q0-1"] == "b"
    manifest = json.loads((upload / "manifest.json").read_text())
    assert (manifest["items"], manifest["empty"], manifest["status"]) == (10, 1, "pending-server")
    assert manifest["normaliser"] == "lower 1"
    import hashlib

    assert manifest["files"]["toy.json"]["sha256"] == hashlib.sha256(content).hexdigest()
    assert facts_in(tmp_path / "out")["upload"] == "upload"


def test_the_hash_of_a_model_changes_with_its_files(tmp_path):
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "model.safetensors").write_bytes(b"abc")
    first = model_facts(tmp_path)["checkpoint"]
    (tmp_path / "model.safetensors").write_bytes(b"abd")
    second = model_facts(tmp_path)["checkpoint"]
    assert first != second and len(first) == 64
    (tmp_path / "model.safetensors").write_bytes(b"abc")
    assert model_facts(tmp_path)["checkpoint"] == first
