"""lmmkit runs: a table of runs, and two of them next to each other."""

from __future__ import annotations

import json
import shlex

from tests.runs.test_list_runs import SESSIONS, make
from tests.test_cli import run as lmmkit


def test_runs_are_listed(tmp_path):
    make(tmp_path / "a", finished=["one", "two"], sessions=SESSIONS)
    run = make(tmp_path / "b" / "c")
    run.results.write_text(json.dumps({"answers": {"accuracy": {"value": 0.5}}}))
    lines = lmmkit("runs", tmp_path).splitlines()
    assert any(all(word in line for word in ("a ", "mine", "done", "two", "3", "1.5")) for line in lines)
    assert any(all(word in line for word in ("b/c", "stopped", "answers/accuracy 0.5")) for line in lines)


def test_a_damaged_run_does_not_hide_the_others(tmp_path):
    make(tmp_path / "a").run_json.write_text("{")
    make(tmp_path / "b")
    text = lmmkit("runs", tmp_path)
    assert "damaged" in text and "run/damaged" in text and "stopped" in text


def test_two_runs_next_to_each_other(tmp_path):
    for name, value in (("a", 0.5), ("b", 0.75)):
        run = make(tmp_path / name, sessions=SESSIONS)
        run.results.write_text(
            json.dumps({"answers": {"accuracy": {"value": value}, "accuracy/x": {"value": 1}, f"only_{name}": {"value": 0.125}}})
        )  # fmt: skip
    text = lmmkit("runs", "--compare", tmp_path / "a", tmp_path / "b")
    assert "answers/accuracy" in text and "+0.25" in text and "accuracy/x" not in text
    rows = [line.replace("\u2502", " ").split() for line in text.splitlines()]
    assert ["answers/only_a", "0.125"] in rows and ["answers/only_b", "0.125"] in rows, "of one run alone"
    day, minute = SESSIONS[0]["started"][:10], SESSIONS[0]["started"][11:16]
    assert ["started", "(UTC)", *[day, minute] * 2] in rows


def test_the_figure_of_the_best_model_is_no_detail(tmp_path):
    for name, value in (("a", 0.5), ("b", 0.75)):
        best = make(tmp_path / name, finished=["two"], sessions=SESSIONS).best("two")
        best.mkdir()
        chosen = {"best": {"metric": "val/tasks/answers/accuracy", "value": value}}
        (best / "config.json").write_text(json.dumps(chosen))
    text = lmmkit("runs", "--compare", tmp_path / "a", tmp_path / "b")
    assert "best of two: val/tasks/answers/accuracy" in " ".join(text.split()) and "+0.25" in text


def test_names_of_figures_as_long_as_the_quickstart_s_fit_beside_each_other(tmp_path):
    for name in ("a", "b"):
        run = make(tmp_path / name, sessions=SESSIONS)
        run.results.write_text(json.dumps({"answers": {"visual_gain_swapped": {"value": -0.012345678}}}))
    text = lmmkit("runs", "--compare", tmp_path / "a", tmp_path / "b")
    rows = [line.replace("\u2502", " ").split() for line in text.splitlines()]
    assert ["answers/visual_gain_swapped", "-0.01235", "-0.01235", "+0"] in rows


def test_the_command_that_shows_the_recipes_runs_as_it_is(tmp_path):
    a, b = make(tmp_path / "it's a"), make(tmp_path / "b (2)")
    text = lmmkit("runs", "--compare", a.path, b.path)
    assert shlex.split(text.split("`")[1]) == ["lmmkit", "diff", str(a.path), str(b.path)]


def test_json(tmp_path):
    make(tmp_path / "a", sessions=SESSIONS)
    (found,) = json.loads(lmmkit("runs", tmp_path, "--json"))
    assert found["run"] == str(tmp_path / "a") and found["recipe"] == "mine" and found["step"] == 3


def test_no_run_and_no_folder(tmp_path):
    assert "no run" in lmmkit("runs", tmp_path)
    assert "run/not-a-folder" in lmmkit("runs", tmp_path / "missing", code=2)
    assert "run/not-a-run" in lmmkit("runs", "--compare", tmp_path, tmp_path, code=2)


def test_a_comparison_is_of_two_runs_and_has_no_folder(tmp_path):
    for name in "ab":
        make(tmp_path / name)
    pair = tmp_path / "a", tmp_path / "b"
    assert "run/compare" in lmmkit("runs", tmp_path, "--compare", *pair, code=2)
    assert "report/same-run" in lmmkit("runs", "--compare", pair[0], pair[1] / ".." / "a", code=2)
    assert [each["run"] for each in json.loads(lmmkit("runs", "--compare", *pair, "--json"))] == [
        *map(str, pair)
    ]


def test_a_folder_of_runs_that_is_no_run_names_them(tmp_path):
    for name in ("llava", "direct"):
        make(tmp_path / name)
    text = lmmkit("runs", "--compare", tmp_path, tmp_path / "llava", code=2)
    assert "run/not-a-run" in text
    assert "".join(f"{tmp_path / 'direct'}, {tmp_path / 'llava'}.".split()) in "".join(text.split())


def test_names_are_whole_and_have_no_terminal_codes(tmp_path):
    for name in ("[bold]x", "\x1b[31mred", "\u202eleft"):
        make(tmp_path / name, sessions=[{"command": f"lmmkit train '{name}.yaml'"}])
    text = lmmkit("runs", tmp_path)
    assert all(shown in text for shown in ("[bold]x", "?[31mred", "?left"))
    assert "\x1b" not in text and "\u202e" not in text
