"""What is read of a run folder, and the problems of folders that are no run."""

from __future__ import annotations

import json
import shutil

import pytest

from lmmkit.errors import UserError
from lmmkit.report.loaded_run import figure_of, load_runs
from lmmkit.runs.run_folder import RunFolder
from lmmkit.runs.run_lock import is_locked, lock
from tests.support.run_folders import make_pair


@pytest.fixture
def pair(tmp_path):
    return make_pair(tmp_path, scenes=4)


def test_a_whole_run_is_read(pair):
    plain, direct = load_runs(pair)
    assert (plain.name, direct.name) == ("plain", "direct") and not plain.missing and not plain.unfinished
    assert len(plain.steps) == 40 and plain.total("tokens") == 4000 and direct.total("seconds") == 40.0
    value = json.loads((pair[0] / "results.json").read_text())["answers"]["accuracy"]["value"]
    figure = plain.figure("answers", "accuracy")
    assert figure is not None and figure.value == value
    assert plain.cpu_seconds == 101.0


def test_runs_of_one_name_get_longer_names(pair, tmp_path):
    other = tmp_path / "second" / "plain"
    shutil.copytree(pair[0], other)
    assert [run.name for run in load_runs([pair[0], pair[1], other])] == [
        f"{tmp_path.name}/plain",
        "direct",
        "second/plain",
    ]


def test_all_problems_are_reported_at_once(pair, tmp_path):
    (tmp_path / "empty").mkdir()
    (pair[1] / "results.json").write_text("{")
    (pair[1] / "metrics.jsonl").write_text("[1]\n{}\n")
    paths = [pair[0], tmp_path / "nowhere", tmp_path / "empty", pair[1], pair[0]]
    with pytest.raises(UserError) as error:
        load_runs(paths)
    assert [p.code for p in error.value.problems] == [
        "report/same-run", "run/not-a-run", "run/not-a-run", "run/damaged", "run/damaged",
    ]  # fmt: skip


def test_a_run_that_still_trains_is_named(pair):
    run = RunFolder(pair[0])
    assert not is_locked(run)
    with lock(run):
        assert is_locked(run)
        assert load_runs([pair[0]])[0].unfinished == "is still training, at step 40"
    assert not load_runs([pair[0]])[0].unfinished


def test_a_run_that_stopped_names_the_stages_without_a_model(pair):
    shutil.rmtree(pair[0] / "model" / "finetune")
    assert load_runs([pair[0]])[0].unfinished == "stopped at step 40, without a model of finetune"


def test_a_run_whose_earlier_models_were_removed_is_complete(pair):
    shutil.rmtree(pair[0] / "model" / "pretrain")
    assert not load_runs([pair[0]])[0].unfinished


@pytest.mark.parametrize(
    ("name", "says"), [("results.json", "no results"), ("metrics.jsonl", "no logged steps"), ("plan.txt", "no plan"),
                       ("recipe.resolved.yaml", "no recipe")]
)  # fmt: skip
def test_a_missing_file_is_named(pair, name, says):
    (pair[0] / name).unlink()
    (missing,) = load_runs([pair[0]])[0].missing
    assert missing.startswith(says)


@pytest.mark.parametrize(
    "value", [None, 3, "x", [], {}, {"value": "1", "n": 2}, {"value": 1.0}, {"value": None, "n": 2}]
)
def test_other_values_are_no_figures(value):
    assert figure_of(value) is None


def test_sums_are_of_all_steps_where_one_of_ten_is_logged(pair):
    file = pair[0] / "recipe.resolved.yaml"
    file.write_text(file.read_text().replace("log_every: 1\n", "log_every: 10\n"))
    lines = (pair[0] / "metrics.jsonl").read_text().splitlines(keepends=True)
    (pair[0] / "metrics.jsonl").write_text("".join(lines[9::10]))
    (run,) = load_runs(pair[:1])
    assert (len(run.steps), run.every, run.total("tokens"), run.total("seconds")) == (4, 10, 4000, 20.0)
    assert load_runs(pair[1:])[0].every == 1


def test_sums_that_no_float_holds_end(pair):
    lines = [{"step": i + 1, "loss": 1.0, "tokens": 1.5e308} for i in range(3)]
    (pair[0] / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    facts = json.loads((pair[0] / "run.json").read_text())
    facts["sessions"] = [facts["sessions"][0] | {"cpu_seconds": 1e308} for _ in range(3)]
    (pair[0] / "run.json").write_text(json.dumps(facts))
    (run,) = load_runs(pair[:1])
    assert 1e300 < run.total("tokens") < float("inf") and run.cpu_seconds is None
