"""The folder of answers: appended as they come, continued after a death, refused if they belong to something else."""

from __future__ import annotations

import json

import pytest

from lmmkit.errors import MachineError, UserError
from lmmkit.evaluate.answers.answers_file import HEADER, IDENTITY, NAME, AnswersFolder, by_key, read_answers
from lmmkit.evaluate.answers.schema import FIELDS, Answer, answer_of

HEAD = {
    "task": "toy", "split": "test", "data_sha256": "d", "model": "m", "dtype": "float32",
    "decoding": {"kind": "greedy", "max_new_tokens": 5}, "prompt": {"template": ["vicuna_v1"]}, "items": 3,
}  # fmt: skip
ORDER = {"b": 0, "a": 1, "c": 2}


def answer(id: str, condition: str = "own", raw: str = "yes") -> Answer:
    return Answer(
        task="toy", split="test", data="d", id=id, row=0, condition=condition, question="?", images=("/i.jpg",),
        cluster="i", prompt_sha="p", raw=raw, gold=["yes"], score=1.0,
    )  # fmt: skip


@pytest.fixture
def folder(tmp_path):
    return AnswersFolder(tmp_path / "toy", ORDER)


def test_answers_are_read_as_they_were_written(folder):
    assert folder.begin(HEAD) == []
    odd = answer("a", raw='日本\n\u2028 \t"')
    with folder.appender(0) as file:
        file.add([odd])
        file.add([answer("b", "blank"), answer("b")])
        assert len(read_answers(folder.answers)) == 3, "each call is in the file at once"
    assert folder.merge() == [answer("b"), odd, answer("b", "blank")], "own ones first, in official order"
    assert read_answers(folder.answers) == folder.merge()
    assert set(json.loads(folder.answers.read_text().split("\n")[0])) == set(FIELDS)


def test_a_torn_line_is_removed_before_the_next_answer(folder):
    folder.begin(HEAD)
    with folder.appender(0) as file:
        file.add([answer("a"), answer("b")])
    whole = folder.answers.read_bytes()
    lines = whole.split(b"\n")
    for cut in range(len(lines[0]) + 1, len(whole) - 1, 7):
        folder.answers.write_bytes(whole[:cut])
        assert [a.id for a in read_answers(folder.answers)] == ["a"]
        with folder.appender(0) as file:
            file.add([answer("c")])
        assert [a.id for a in read_answers(folder.answers)] == ["a", "c"]


@pytest.mark.parametrize("line", ["{", "[]", "null", "{}", '{"id": 1}', '{"more": 1}'])
def test_a_damaged_line_is_named(folder, line):
    folder.begin(HEAD)
    folder.answers.write_text(answer("a").as_line() + line + "\n" + answer("b").as_line())
    with pytest.raises(UserError, match="answers/damaged") as error:
        folder.begin(HEAD)
    assert f"{NAME}:2" in error.value.problems[0].where


def test_an_answer_with_a_field_of_another_type_is_damaged():
    changes = [
        {"id": 3},
        {"condition": "blanc"},
        {"raw": None},
        {"images": 3},
        {"extra": 1},
        {"images": "ab"},
        {"images": [3]},
    ]
    changes += [{"score": value} for value in ("1", True, [1], float("nan"), float("inf"), 10**400)]
    changes += [
        {"lenient": "1"},
        {"groups": ["x"]},
        {"groups": {"type": 3}},
        {"groups": None},
        {"cluster": 4},
        {"parsed": 3},
    ]
    for change in changes:
        line = json.dumps(json.loads(answer("a").as_line()) | change)
        with pytest.raises(UserError, match="answers/damaged"):
            answer_of(line, "x.jsonl:1")


def test_two_answers_to_one_item_are_refused(folder):
    folder.begin(HEAD)
    folder.answers.write_text(answer("a").as_line() * 2 + answer("a", "blank").as_line())
    with pytest.raises(UserError, match="answers/duplicate") as error:
        folder.begin(HEAD)
    assert "`a` (own)" in error.value.problems[0].got
    assert len(by_key([answer("a"), answer("a", "none")], "x")) == 2


@pytest.mark.parametrize("key", [key for key in IDENTITY if key != "format"])
def test_other_settings_refuse_to_go_on(folder, key):
    folder.begin(HEAD)
    with pytest.raises(UserError) as error:
        folder.begin({**HEAD, key: "other"})
    (problem,) = error.value.problems
    assert (
        problem.code == "answers/changed"
        and problem.where.endswith(f"{HEADER}: {key}")
        and "other" in problem.got
    )
    assert folder.begin({**HEAD, "items": 9, "versions": {"torch": "9"}}) == [], "these may differ"


def test_all_changes_are_reported_together(folder):
    folder.begin(HEAD)
    with pytest.raises(UserError) as error:
        folder.begin({**HEAD, "model": "n", "dtype": "bfloat16"})
    assert len(error.value.problems) == 2


def test_a_folder_that_cannot_be_created_is_refused(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(MachineError, match="answers/cannot-write") as error:
        AnswersFolder(tmp_path / "file" / "toy", ORDER).begin(HEAD)
    assert "--out" in error.value.problems[0].hint


def test_files_of_all_ranks_are_merged_in_official_order(folder):
    folder.begin(HEAD)
    for rank, ids in enumerate(("c", "ab", "")):
        with folder.appender(rank) as file:
            file.add(answer(id) for id in ids)
    assert [a.id for a in folder.merge()] == ["b", "a", "c"]
    assert [path.name for path in folder.path.iterdir() if "rank" in path.name] == []


def test_a_death_while_merging_loses_and_doubles_nothing(folder):
    folder.begin(HEAD)
    with folder.appender(1) as file:
        file.add([answer("a"), answer("b")])
    part = (folder.path / "answers.rank-1.jsonl").read_text()
    folder.merge()
    (folder.path / "answers.rank-1.jsonl").write_text(part)
    assert [a.id for a in folder.begin(HEAD)] == ["b", "a"]
    (folder.path / "answers.rank-1.jsonl").write_text(answer("a", raw="no").as_line())
    with pytest.raises(UserError, match="answers/duplicate"):
        folder.begin(HEAD)


def test_answers_that_cannot_be_read_are_a_problem(tmp_path):
    with pytest.raises(UserError, match=r"got Is a directory.*run/damaged"):
        read_answers(tmp_path)
