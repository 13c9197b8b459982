"""Requests to a judge and its responses: hashes, attempts, runs, and what is refused."""

from __future__ import annotations

import json

import pytest

from lmmkit.evaluate.judge import Judge, JudgeResponse, judged, read_responses, write_requests
from tests.support.benchmark_files import POINTER, problems_of


def number(text):
    return (float(text),) if text.isdecimal() else None


def judge(ids=("a", "b"), **changes):
    first = {i: ({"role": "user", "content": f"grade {i}"},) for i in ids}
    again = {i: ({"role": "user", "content": f"grade {i} again"},) for i in ids}
    settings = {
        "benchmark": "toy", "model": "judge-1", "max_tokens": 3, "temperatures": (0.0, 0.5), "parse": number,
        "first": first, "again": again,
    }  # fmt: skip
    return Judge(**settings | changes)


def answered(requests, texts, model="judge-2"):
    pairs = zip(requests, texts, strict=True)
    return [
        JudgeResponse(hash=r.hash, text=text, judge=model, where=f"r:{i}")
        for i, (r, text) in enumerate(pairs)
    ]


def test_all_requests_wait_at_first_and_have_hashes_of_their_own():
    start = judged(judge(), 2)
    assert [(r.item, r.run, r.attempt) for r in start.waiting] == [
        ("a", 1, 1),
        ("b", 1, 1),
        ("a", 2, 1),
        ("b", 2, 1),
    ]
    assert len({r.hash for r in start.waiting}) == 4 and start.judge is None
    assert judged(judge(), 2).waiting[0].hash == start.waiting[0].hash, "a hash does not change between calls"
    other = judge(first=judge().first | {"a": ({"role": "user", "content": "grade A"},)})
    assert judged(other, 2).waiting[0].hash != start.waiting[0].hash


def test_grades_are_there_when_no_request_waits():
    start = judged(judge(), 2)
    part = judged(judge(), 2, answered(start.waiting[:3], ["1", "2", "3"]))
    assert [(r.item, r.run) for r in part.waiting] == [("b", 2)] and part.scored == 3
    assert part.grades == ({"a": (1.0,), "b": (2.0,)}, {"a": (3.0,)})
    done = judged(judge(), 2, answered(start.waiting, ["1", "2", "3", "4"]))
    assert not done.waiting and done.scored == 4 and done.parse_failed == 0 and done.judge == "judge-2"


@pytest.mark.parametrize(("failed", "left_out"), [(None, 1), ((0.0,), 0)])
def test_a_response_without_a_grade_is_asked_for_again_then_left_out_or_zero(failed, left_out):
    asked = judge(ids=("a",), failed=failed)
    first = judged(asked, 1).waiting
    again = judged(asked, 1, answered(first, ["well"]))
    (request,) = again.waiting
    assert request.messages[0]["content"] == "grade a again" and (request.temperature, request.attempt) == (
        0.5,
        2,
    )
    assert again.parse_failed == 1 and again.grades == ({},), "no grade yet"
    saved = judged(asked, 1, answered([*first, request], ["well", "7"]))
    assert saved.grades == ({"a": (7.0,)},) and saved.parse_failed == 1 and saved.left_out == 0
    lost = judged(asked, 1, answered([*first, request], ["well", "hm"]))
    assert lost.grades == ({"a": failed},) and (lost.parse_failed, lost.left_out) == (2, left_out)
    assert not lost.waiting


def test_two_judges_are_not_mixed_in_one_number():
    requests = judged(judge(), 1).waiting
    mixed = answered(requests[:1], ["1"]) + answered(requests[1:], ["2"], model="judge-3")
    (problem,) = problems_of(lambda: judged(judge(), 1, mixed))
    assert problem.code == "judge/mixed" and "judge-2" in problem.got and "judge-3" in problem.got


def test_responses_to_other_answers_or_more_runs_are_refused():
    two = judged(judge(), 2).waiting
    (problem,) = problems_of(lambda: judged(judge(), 1, answered(two, ["1"] * 4)))
    assert problem.code == "judge/unasked" and problem.got.startswith("2 of 4")
    stranger = JudgeResponse(hash="f" * 64, text="1", judge="other", where="r:9")
    problems = problems_of(lambda: judged(judge(), 2, [*answered(two, ["1"] * 4), stranger]))
    assert [p.code for p in problems] == ["judge/mixed", "judge/unasked"]


def test_requests_and_responses_are_lines_of_json(tmp_path):
    requests = judged(judge(), 1).waiting
    write_requests(tmp_path / "judge_requests.jsonl", requests)
    lines = [json.loads(line) for line in (tmp_path / "judge_requests.jsonl").read_text().splitlines()]
    assert lines[0] == {
        "hash": requests[0].hash, "benchmark": "toy", "item": "a", "run": 1, "attempt": 1, "judge": "judge-1",
        "temperature": 0.0, "max_tokens": 3, "messages": [{"role": "user", "content": "grade a"}],
    }  # fmt: skip
    out = tmp_path / "judge_responses.jsonl"
    responses = (
        {"hash": line["hash"], "text": "1\u2028", "judge": "j", "date": "2026-11-28"} for line in lines
    )
    out.write_text("\n\n".join(json.dumps(each, ensure_ascii=False) for each in responses), encoding="utf-8")
    read = read_responses(out)
    assert [(r.hash, r.text, r.judge) for r in read] == [(r.hash, "1\u2028", "j") for r in requests]
    assert read[1].where == f"{out}:3"


def test_bad_lines_are_reported_at_once(tmp_path):
    path = tmp_path / "judge_responses.jsonl"
    good = json.dumps({"hash": "h", "text": "", "judge": "j"})
    bad = [
        "{",
        "[]",
        '{"text": "", "judge": "j"}',
        '{"hash": "g", "text": 1, "judge": "j"}',
        '{"hash": "g", "text": "", "judge": " "}',
    ]
    path.write_text("\n".join([good, *bad, good]))
    problems = problems_of(lambda: read_responses(path))
    assert [p.code for p in problems] == ["judge/response"] * 5 + ["judge/twice"]
    assert [p.where for p in problems] == [f"{path}:{n}" for n in range(2, 8)]
    assert (
        "no key `hash`" in problems[2].got
        and "`text`: 1" in problems[3].got
        and f"{path}:1" in problems[5].got
    )


def test_a_file_that_cannot_be_read_is_refused(tmp_path):
    assert [p.code for p in problems_of(lambda: read_responses(tmp_path / "none.jsonl"))] == [
        "judge/response"
    ]
    (tmp_path / "a.jsonl").write_bytes(b"\xff\xfe")
    assert [p.code for p in problems_of(lambda: read_responses(tmp_path / "a.jsonl"))] == ["judge/response"]
    (tmp_path / "b.jsonl").write_bytes(POINTER)
    assert {p.code for p in problems_of(lambda: read_responses(tmp_path / "b.jsonl"))} == {"judge/response"}
