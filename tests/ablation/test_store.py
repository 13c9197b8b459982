"""The folder of runs: locks, costs, and the folder that an evaluation reads."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import replace

import pytest

from lmmkit.ablation.planned_runs import GridRun
from lmmkit.ablation.store import Cost, Store, measured_numbers
from lmmkit.errors import UserError
from lmmkit.recipe import dump, read_recipe
from tests.support.grids import stage_run


def test_a_lock_lasts_as_long_as_the_command_that_inherits_it(tmp_path):
    store = Store(tmp_path)
    assert not store.is_busy("key")
    handle = store.claim("key")
    assert handle is not None and store.claim("key") is None and store.is_busy("key")
    wait = [sys.executable, "-c", "import sys; sys.stdin.read()"]
    with subprocess.Popen(wait, stdin=subprocess.PIPE, pass_fds=(handle,)) as process:
        os.close(handle)
        assert store.is_busy("key"), "as if the grid had been killed"
        process.communicate(b"")
    assert not store.is_busy("key")


def test_costs_are_the_sum_of_all_sessions_and_unknown_if_one_was_lost(tmp_path):
    store, stage = Store(tmp_path), replace(stage_run("key"), steps=2)
    folder = store.run("key")
    folder.path.mkdir(parents=True)
    folder.metrics.write_text(
        '{"step": 1, "tokens": 5, "seconds": 0.5}\n{"step": 1, "loss": 1}\n{"step": 2, "tokens": 7, "seconds": 1.0}\n'
    )
    folder.resolved.write_text(dump(stage.recipe))
    for cpu, expected in (([3.0, 4.5], 7.5), ([3.0, None], None), ([], None)):
        folder.run_json.write_text(json.dumps({"sessions": [{"cpu_seconds": each} for each in cpu]}))
        assert store.cost(stage) == Cost(steps=2, tokens=12, wall_seconds=1.5, cpu_seconds=expected)


def test_a_recipe_starts_from_the_model_before(tmp_path):
    store, first = Store(tmp_path), stage_run("first")
    last = stage_run("last", before=first)
    recipe = read_recipe(store.write_recipe(last))
    assert recipe.stages["finetune"].start == str(tmp_path / "runs" / "first" / "model" / "pretrain")
    assert (
        replace(recipe, stages={**recipe.stages, "finetune": last.recipe.stages["finetune"]}) == last.recipe
    )
    assert read_recipe(store.write_recipe(first)) == first.recipe


def test_an_evaluation_has_the_models_of_all_stages_and_the_tasks_of_its_grid(tmp_path):
    store, first = Store(tmp_path), stage_run("first")
    last = stage_run("last", before=first)
    run = GridRun(
        arm="a", equal="steps", seed=1, root=".", branch=0, stages=(first, last), questions={"answers": "q"}
    )
    for stage in run.stages:
        store.model(stage).mkdir(parents=True)
        (store.model(stage) / "config.json").write_text(stage.key)
    folder = store.run("last")
    folder.run_json.write_text("{}")
    assert last.recipe.evaluate is not None
    fewer = {"terms": last.recipe.evaluate.tasks["terms"]}
    stored = replace(last.recipe, evaluate=replace(last.recipe.evaluate, tasks=fewer))
    folder.resolved.write_text(dump(stored))
    for _ in range(2):
        store.prepare_evaluation(run)
        linked = folder.model("pretrain") / "config.json"
        assert linked.read_text() == "first" and linked.samefile(store.model(first) / "config.json")
        assert read_recipe(folder.resolved) == last.recipe
    folder.require_plain()
    assert store.missing_tasks(run) == ["answers"]
    folder.results.write_text('{"answers": {}}')
    assert store.missing_tasks(run) == ["answers"], "of unknown questions"
    store.note_evaluated(run)
    assert store.missing_tasks(run) == []


@pytest.mark.parametrize("line", ['"tokens": 5', '"tokens": "x", "seconds": 1', '"tokens": null, "seconds": 1', '"tokens": 5, "seconds": NaN', '"tokens": -5, "seconds": 1'])  # fmt: skip
def test_a_cost_that_is_no_number_is_named(tmp_path, line):
    store, stage = Store(tmp_path), stage_run("key")
    folder = store.run("key")
    folder.path.mkdir(parents=True)
    folder.run_json.write_text("{}")
    folder.resolved.write_text(dump(stage.recipe))
    folder.metrics.write_text(f'{{"step": 6, {line}}}\n')
    with pytest.raises(UserError, match=r"metrics.jsonl, step 6: got (tokens|seconds): .*run/damaged"):
        store.cost(stage)


def logged(tmp_path, *, every=1, steps, before=0, length=6):
    """Returns the cost of a stage whose run, made by a recipe that logs one step in `every`, has logged these steps."""
    store, first = Store(tmp_path), stage_run("first", steps=before)
    stage = stage_run("key", before=first if before else None, steps=length)
    folder = store.run("key")
    folder.path.mkdir(parents=True, exist_ok=True)
    folder.run_json.write_text("{}")
    made = replace(stage.recipe, output=replace(stage.recipe.output, log_every=every))
    folder.resolved.write_text(dump(made))
    folder.metrics.write_text("".join(f'{{"step": {n}, "tokens": 8, "seconds": 0.5}}\n' for n in steps))
    return store.cost(stage)


def test_where_one_step_in_n_is_logged_the_others_count_as_these_do(tmp_path):
    for every, steps in ((1, range(1, 7)), (4, [4]), (5, [5]), (2, [2, 4, 6]), (4, [1, 2, 4])):
        found = logged(tmp_path, every=every, steps=steps)
        assert (found.tokens, found.wall_seconds) == (48, 3.0), "as another grid may have logged them"
    assert logged(tmp_path, steps=range(7, 13), before=6).tokens == 48, "counted over all stages"
    found = logged(tmp_path, every=50, steps=[])
    assert (found.steps, found.tokens, found.wall_seconds) == (6, None, None)


@pytest.mark.parametrize(
    ("every", "steps"), [(1, [1, 2, 3]), (1, []), (2, [2, 4]), (1, [1, 2, 3, 4, 5, 6, 7])]
)
def test_a_log_without_the_last_steps_is_named(tmp_path, every, steps):
    with pytest.raises(UserError, match=r"metrics.jsonl.* logged steps, the last one .*run/damaged"):
        logged(tmp_path, every=every, steps=steps)


TRIAL = {"cpu_seconds": 0.5, "wall_seconds": 0.75, "tokens": 5}


@pytest.mark.parametrize(
    "change",
    [{"tokens": None}, {"cpu_seconds": "fast"}, {"wall_seconds": -1}, {"cpu_seconds": 0}, {"tokens": True}],
)
def test_what_was_measured_is_a_number_above_0(tmp_path, change):
    path = tmp_path / "trial.json"
    path.write_text(json.dumps(TRIAL | {"more": 1}))
    assert measured_numbers(path, TRIAL, above_zero=True) == TRIAL
    path.write_text(json.dumps(TRIAL | change))
    with pytest.raises(UserError, match=rf"trial.json: {next(iter(change))}: .*run/damaged"):
        measured_numbers(path, TRIAL, above_zero=True)
    path.write_text('{"tasks": 3}')
    with pytest.raises(UserError, match=r"trial.json: answers: "):
        measured_numbers(path, ["answers"], section="tasks")
    assert measured_numbers(path, ["tasks"]) == {"tasks": 3}


def test_outcomes_are_written_by_one_process_at_a_time(tmp_path):
    store = Store(tmp_path)
    with store.alone():
        assert store.is_busy("outcomes")
    assert not store.is_busy("outcomes")


def test_the_outcome_on_other_data_is_kept_under_another_name(tmp_path):
    store, path = Store(tmp_path), tmp_path / "ablation.json"
    assert store.keep_outcome(path, {"roots": ["/data/one"]}) is None
    for text in ("{", "[]", "{}", '{"roots": []}', '{"roots": ["/data/two", "/data/one"]}'):
        path.write_text(text)
        both = {"roots": ["/data/one", "/data/two"]}
        assert store.keep_outcome(path, both) is None and path.read_text() == text
    kept = store.keep_outcome(path, {"roots": ["/data/one"]})
    assert kept == tmp_path / "ablation-two-one.json" and kept.read_text() == text and not path.exists()


def test_the_outcome_of_another_grid_of_one_name_replaces_none(tmp_path):
    store, path = Store(tmp_path), tmp_path / "ablation.json"

    def outcome(folder, file):
        return {"roots": [f"{folder}/data"], "file": file}

    first, second, third = outcome("/a", "/a/g.yaml"), outcome("/a", "/b/g.yaml"), outcome("/c", "/b/g.yaml")
    for before, after, name in (
        (first, first, None),
        ({"roots": ["/a/data"]}, first, None),
        (first, second, "ablation-data.json"),
        (second, third, "ablation-data-2.json"),
        (third, first, "ablation-data-3.json"),
        (second, first, "ablation-data-2.json"),
    ):
        path.write_text(json.dumps(before))
        kept = store.keep_outcome(path, after)
        assert kept == (name and tmp_path / name)
        assert json.loads((kept or path).read_text()) == before


def test_the_outcome_of_a_grid_that_was_moved_is_replaced(tmp_path):
    store, path = Store(tmp_path), tmp_path / "ablation.json"

    def outcome(folder, keys, measures, roots=("data",)):
        runs = [{"key": key} for key in keys]
        arms = [{"variant": "base", "equal": "steps", "runs": runs}]
        where = {"roots": [f"{folder}/{root}" for root in roots], "file": f"{folder}/g.yaml"}
        return where | {"measures": measures, "arms": arms}

    old = outcome("/a", ["k1", "k2"], {"m": "t/m"})
    for new in (
        outcome("/b", ["k1", "k2"], {"m": "t/m"}),
        outcome("/b", ["k3", "k2", "k1"], {"n": "t/n", "m": "t/m"}),
    ):
        path.write_text(json.dumps(old))
        assert store.keep_outcome(path, new) is None and path.exists()
    lacking = [
        outcome("/b", ["k1"], {"m": "t/m"}), outcome("/b", ["k1", "k2"], {"m": "t/n"}),
        outcome("/b", ["k1", "k2"], {"m": "t/m"}, ("data", "more")), {"roots": ["/b/data"], "file": "/b/g.yaml"},
    ]  # fmt: skip
    for new in lacking:
        path.write_text(json.dumps(old))
        kept = store.keep_outcome(path, new)
        assert kept is not None and json.loads(kept.read_text()) == old
