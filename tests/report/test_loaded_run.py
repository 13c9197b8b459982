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
