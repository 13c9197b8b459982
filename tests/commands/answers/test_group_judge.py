"""lmmkit answers judge on the two benchmarks with a judge: requests out, responses in, a score when all are there."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from lmmkit.evaluate.questions import asking
from lmmkit.evaluate.questions.asking import Reply
from lmmkit.runs.files import read_jsonl
from tests.test_cli import run

NAMES = ("llava-wild", "mm-vet")


@pytest.fixture(scope="module")
def evaluated(answering, official, tmp_path_factory):
    """Evaluates a model on both benchmarks by the command."""
    out = tmp_path_factory.mktemp("judged")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            asking, "replies", lambda chat_model, questions, **more: [
                Reply(f"It is {q.key[1]} | here.", (7,), False) for q in questions
            ]
        )  # fmt: skip
        words = ["--on", ",".join(NAMES), "--files", official, "--out", out]
        text = run("eval", answering / "model" / "finetune", *words)
    assert text.count("pending-judge: no score here; see judge_requests.jsonl") == 2
    return out


@pytest.fixture
def judge(evaluated, official, tmp_path):
    """Returns a function that runs the command on a copy of the answers, and that folder."""
    import shutil

    out = tmp_path / "out"
    shutil.copytree(evaluated, out)

    def command(name, *words, code=0):
        return run("answers", "judge", out, name, "--files", official, *words, code=code)

    command.out = out
    return command


def requests_in(judge, name) -> list[dict]:
    return read_jsonl(judge.out / name / "judge_requests.jsonl")


def respond(path: Path, requests: list[dict], text, judge: str = "judge-2026") -> Path:
    """Writes a response to each request: `text`, or what it returns for a request."""
    lines = [
        {"hash": r["hash"], "text": text(r) if callable(text) else text, "judge": judge, "date": "2026-11-28"}
        for r in requests
    ]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


def grade(name: str, request: dict) -> str:
    """Returns the judge's text: another grade for each item and run."""
    n = int(request["item"].removeprefix("v1_")) + request["run"]
    return f"{n + 2} {n}\nBecause." if name == "llava-wild" else f"0.{n} and more"


def score_of(name: str) -> float:
    """Returns the score of `grade`, by loops."""
    runs = []
    for run_ in (1, 2, 3):
        ns = [i + run_ for i in range(3)]
        runs.append(sum(ns) / sum(n + 2 for n in ns) if name == "llava-wild" else sum(n / 10 for n in ns) / 3)
    return sum(runs) / 3


@pytest.mark.parametrize("name", NAMES)
def test_requests_go_out_and_responses_come_in(judge, tmp_path, name):
    text = judge(name)
    requests = requests_in(judge, name)
    assert len(requests) == 9 and f"{name}: 9 requests in" in text and "status pending-judge" in text
    assert {(r["benchmark"], r["run"], r["attempt"]) for r in requests} == {(name, n, 1) for n in (1, 2, 3)}
    assert {r["judge"] for r in requests} == {{"llava-wild": "gpt-4-0314", "mm-vet": "gpt-4-0613"}[name]}
    for request in requests:
        assert f"It is {request['item']} | here." in request["messages"][-1]["content"]
    file = respond(tmp_path / "r.jsonl", requests, lambda r: grade(name, r))
    text = judge(name, "--responses", file)
    assert "status scored" in text and "judge judge-2026" in text and "waiting 0" in text
    found = json.loads(judge(name, "--responses", file, "--json"))
    assert found["score"]["value"] == pytest.approx(score_of(name)) and found["score"]["n"] == 3
    assert found["score/std over runs"]["n"] == 3 and found["scored"] == 9 and found["left_out"] == 0
    assert f"{100 * score_of(name):.1f}" in text
    kept = json.loads((judge.out / name / "judged.json").read_text())
    assert kept["figures"]["score"] == found["score"] and kept["status"] == "scored"
    assert requests_in(judge, name) == []


@pytest.mark.parametrize("name", NAMES)
def test_one_run_is_enough_if_asked_for(judge, tmp_path, name):
    judge(name, "--runs", 1)
    requests = requests_in(judge, name)
    assert len(requests) == 3
    file = respond(tmp_path / "r.jsonl", requests, lambda r: grade(name, r))
    assert "status scored" in judge(name, "--runs", 1, "--responses", file)
    assert "status pending-judge" in judge(name, "--responses", file), "three runs are not there"
    judge(name)
    more = respond(tmp_path / "three.jsonl", requests_in(judge, name), lambda r: grade(name, r))
    assert "judge/unasked" in judge(name, "--runs", 1, "--responses", more, code=2)


@pytest.mark.parametrize("name", NAMES)
def test_missing_responses_leave_no_score(judge, tmp_path, name):
    requests = requests_in(judge, name)
    first = respond(tmp_path / "first.jsonl", requests[:5], lambda r: grade(name, r))
    text = judge(name, "--responses", first)
    assert "status pending-judge" in text and "scored 5, waiting 4" in text and "score/" not in text
    assert [r["hash"] for r in requests_in(judge, name)] == [r["hash"] for r in requests[5:]]
    assert json.loads((judge.out / name / "judged.json").read_text())["figures"] == {}
    rest = respond(tmp_path / "rest.jsonl", requests_in(judge, name), lambda r: grade(name, r))
    found = json.loads(judge(name, "--responses", first, "--responses", rest, "--json"))
    assert found["score"]["value"] == pytest.approx(score_of(name))


@pytest.mark.parametrize("name", NAMES)
def test_duplicate_responses_are_refused_in_one_file_and_over_files(judge, tmp_path, name):
    requests = requests_in(judge, name)
    file = respond(tmp_path / "r.jsonl", [*requests, requests[2]], lambda r: grade(name, r))
    text = judge(name, "--responses", file, code=2)
    assert "judge/twice" in text and f"{file}:10" in text and f"{file}:3" in text
    file = respond(tmp_path / "r.jsonl", requests, lambda r: grade(name, r))
    other = respond(tmp_path / "other.jsonl", requests[4:5], "1 9" if name == "llava-wild" else "1.0")
    text = judge(name, "--responses", file, "--responses", other, code=2)
    assert "judge/twice" in text and f"{other}:1" in text and f"{file}:5" in text


@pytest.mark.parametrize("name", NAMES)
def test_malformed_responses_are_all_named(judge, tmp_path, name):
    requests = requests_in(judge, name)
    file = respond(tmp_path / "r.jsonl", requests[:1], lambda r: grade(name, r))
    bad = ['{"hash": "a", "text": "8', "[1]", '{"text": "8 9", "judge": "j"}', '{"hash": "a", "text": 8, "judge": "j"}', '{"hash": "a", "text": "8"}']  # fmt: skip
    file.write_text(file.read_text() + "".join(line + "\n" for line in bad))
    text = judge(name, "--responses", file, "--responses", tmp_path / "none.jsonl", code=2)
    assert "judge/response" in text and "6 problems." in text
    assert all(f"{file}:{number}" in text for number in range(2, 7)) and "none.jsonl" in text
    file = respond(tmp_path / "r.jsonl", requests, lambda r: grade(name, r))
    cut = file.read_text()[:-40]
    file.write_text(cut)
    assert f"{file}:9" in judge(name, "--responses", file, code=2)


@pytest.mark.parametrize("name", NAMES)
def test_responses_of_two_models_or_to_other_answers_are_refused(judge, tmp_path, name):
    requests = requests_in(judge, name)
    file = respond(tmp_path / "a.jsonl", requests[:4], lambda r: grade(name, r))
    other = respond(tmp_path / "b.jsonl", requests[4:], lambda r: grade(name, r), "judge-2027")
    text = judge(name, "--responses", file, "--responses", other, code=2)
    assert "judge/mixed" in text and "judge-2026" in text and "judge-2027" in text
    answers = judge.out / name / "answers.jsonl"
    answers.write_text(answers.read_text().replace(" | here.", " | there."))
    text = judge(name, "--responses", file, code=2)
    assert "judge/unasked" in text and "4 of 4" in text


def test_a_pair_that_cannot_be_read_is_left_out_and_counted(judge, tmp_path):
    requests = requests_in(judge, "llava-wild")
    failing = {r["hash"] for r in requests if r["item"] == "1"}
    file = respond(
        tmp_path / "r.jsonl", requests, lambda r: "I cannot." if r["hash"] in failing else "10 5\nx"
    )
    found = json.loads(judge("llava-wild", "--responses", file, "--json"))
    assert (found["parse_failed"], found["left_out"], found["scored"]) == (3, 3, 6)
    assert found["score"]["value"] == pytest.approx(0.5) and found["score"]["n"] == 2


def test_a_judge_that_always_fails_gives_no_score_of_100(judge, tmp_path):
    file = respond(tmp_path / "r.jsonl", requests_in(judge, "llava-wild"), "Service unavailable")
    text = judge("llava-wild", "--responses", file)
    assert "status no grade" in text and "left_out 9" in text and "100.0" not in text
    kept = json.loads((judge.out / "llava-wild/judged.json").read_text(), parse_constant=pytest.fail)
    assert kept["figures"] == {} and kept["status"] == "no grade"


def test_a_grade_that_cannot_be_read_is_asked_for_again_then_zero(judge, tmp_path):
    files, temperatures = [], []
    for attempt in range(1, 6):
        requests = requests_in(judge, "mm-vet")
        assert {r["attempt"] for r in requests} == {attempt} and len(requests) == (9 if attempt == 1 else 3)
        temperatures.append(requests[0]["temperature"])
        path = tmp_path / f"{attempt}.jsonl"
        files += ["--responses", respond(path, requests, lambda r: "?" if r["item"] == "v1_1" else "0.5 ")]
        text = judge("mm-vet", *files)
    assert temperatures == [0.0, 0.0, 0.5, 1.0, 1.5]
    assert "parse_failed 15" in text and "status scored" in text
    found = json.loads(judge("mm-vet", *files, "--json"))
    assert found["score"]["value"] == pytest.approx((0.5 + 0.0 + 0.5) / 3)


@pytest.mark.parametrize("name", NAMES)
def test_answers_to_a_part_are_not_judged(judge, name):
    answers = judge.out / name / "answers.jsonl"
    answers.write_text("".join(line + "\n" for line in answers.read_text().splitlines()[:-1]))
    text = judge(name, code=2)
    assert "benchmarks/upload-answers" in text and "no answer to" in text


def test_the_task_may_have_another_name_in_the_recipe(judge, official):
    (judge.out / "mm-vet").rename(judge.out / "mine")
    text = run("answers", "judge", judge.out, "mine", "--files", official)
    assert "mine: 9 requests in" in text
