"""Runs below a folder: all are found, and each is described from its files, sound or not."""

from __future__ import annotations

import json

import pytest

from lmmkit.runs.list_runs import RECENT, find_runs, summarise_run
from lmmkit.runs.run_folder import RunFolder
from lmmkit.runs.run_lock import lock

SESSIONS = [
    {
        "command": "lmmkit train recipes/mine.yaml --out a",
        "started": "2026-01-02T03:04:05+00:00",
        "cpu_seconds": 2.5,
    },
    {"command": "lmmkit train recipes/mine.yaml --out a --resume", "started": "later", "cpu_seconds": 1.0},
]


def make(path, *, steps=3, finished=(), **facts):
    run = RunFolder(path)
    path.mkdir(parents=True)
    run.run_json.write_text(json.dumps({"recipe": 64 * "a", "plans": {"one": "x", "two": "y"}, **facts}))
    lines = [{"step": i + 1, "stage": "one" if i < 1 else "two", "loss": float(i)} for i in range(steps)]
    run.metrics.write_text("".join(json.dumps(line) + "\n" for line in lines))
    for stage in finished:
        run.model(stage).mkdir(parents=True)
        (run.model(stage) / "config.json").write_text("{}")
    return run


def test_runs_are_found_at_any_depth_and_nothing_inside_a_run(tmp_path):
    make(tmp_path / "b" / "deep" / "x")
    make(tmp_path / "a")
    make(tmp_path / "a" / "inside")
    make(tmp_path / ".hidden")
    assert [run.path.relative_to(tmp_path).as_posix() for run in find_runs(tmp_path)] == ["a", "b/deep/x"]


def test_state(tmp_path):
    assert summarise_run(make(tmp_path / "none")).state == "stopped"
    assert summarise_run(make(tmp_path / "half", finished=["one"])).state == "stopped"
    assert summarise_run(make(tmp_path / "last", finished=["two"])).state == "done"
    run = make(tmp_path / "all", finished=["one", "two"])
    assert summarise_run(run).state == "done"
    with lock(run):
        assert summarise_run(run).state == "running"
    assert summarise_run(run).state == "done"


def test_the_loss_is_a_mean_of_the_last_steps_of_the_stage(tmp_path):
    found = summarise_run(make(tmp_path / "short"))
    assert (found.stage, found.step, found.loss) == ("two", 3, 1.5)  # not of stage `one`
    found = summarise_run(make(tmp_path / "long", steps=5000))
    assert found.step == 5000 and found.loss == pytest.approx(4999 - (RECENT - 1) / 2)
    assert summarise_run(make(tmp_path / "no_step", steps=0)).loss is None


def test_a_line_that_is_being_written_and_a_validation_are_no_step(tmp_path):
    run = make(tmp_path / "run")
    with run.metrics.open("a") as file:
        file.write('{"step": 3, "val/loss": 9.0}\n{"step": 4, "stage": "two", "lo')
    assert summarise_run(run).step == 3


def test_recipe_and_cost_come_from_the_sessions(tmp_path):
    found = summarise_run(make(tmp_path / "new", sessions=SESSIONS))
    assert (found.recipe, found.cpu_seconds, found.started) == ("mine", 3.5, "2026-01-02T03:04:05+00:00")
    assert summarise_run(make(tmp_path / "old")).recipe == "aaaaaaaa"
    killed = [SESSIONS[0], {**SESSIONS[1], "cpu_seconds": None}]
    assert summarise_run(make(tmp_path / "killed", sessions=killed)).cpu_seconds is None


def test_figures(tmp_path):
    run = make(tmp_path / "run", finished=["two"])
    run.results.write_text(json.dumps({"answers": {"accuracy": {"value": 0.5, "n": 4}, "seconds": 3.0}}))
    run.best("two").mkdir()
    (run.best("two") / "config.json").write_text(json.dumps({"best": {"metric": "val/loss", "value": 0.25}}))
    assert summarise_run(run).figures == {"answers/accuracy": 0.5, "best of two: val/loss": 0.25}


@pytest.mark.parametrize("text", ["", "[]", "{", '{"plans": 3, "sessions": 5, "recipe": []}', '{"plans": {"../x": 1}}',
                                  '{"sessions": [{"command": "a \'b", "started": 3, "cpu_seconds": "x"}]}'])  # fmt: skip
def test_a_bad_run_json_is_named_or_read_as_far_as_it_goes(tmp_path, text):
    run = make(tmp_path / "run")
    run.run_json.write_text(text)
    found = summarise_run(run)
    assert (found.state == "damaged") == (text in ("", "[]", "{"))
    assert (str(run.run_json) in found.problem) == (found.state == "damaged")


@pytest.mark.parametrize(
    "text", ['{"answers": 3}', '{"answers": {"accuracy": 2}}', '{"answers": {"a": {"value": "x"}}}']
)
def test_bad_results_have_no_figures(tmp_path, text):
    run = make(tmp_path / "run")
    run.results.write_text(text)
    assert summarise_run(run).figures == {}


@pytest.mark.parametrize("value", ["NaN", "1e999", "true", "1" + 400 * "0"])
def test_a_number_that_no_float_holds_is_none(tmp_path, value):
    run = make(tmp_path / "run")
    run.results.write_text(f'{{"answers": {{"accuracy": {{"value": {value}}}, "right": {{"value": 1}}}}}}')
    run.metrics.write_text(
        f'{{"step": 1, "stage": "one", "loss": {value}}}\n{{"step": 2, "stage": "one", "loss": 3}}\n'
    )
    found = summarise_run(run)
    assert found.figures == {"answers/right": 1.0} and found.loss == 3.0


def test_a_stage_with_a_name_that_no_file_has_is_not_done(tmp_path):
    assert summarise_run(make(tmp_path / "run", plans={300 * "x": "y"})).state == "stopped"
