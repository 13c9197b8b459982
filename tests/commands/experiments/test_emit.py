"""The commands of a grid as a shell script, run by the shell with programs that only note what they are called with."""

from __future__ import annotations

import json
import os
import subprocess
from dataclasses import replace

import pytest

from lmmkit.ablation.planned_runs import GridRun
from lmmkit.ablation.store import Store
from lmmkit.commands.experiments.emit import command_lines
from lmmkit.commands.experiments.grid_work import EvaluateRun, work_of
from lmmkit.recipe import dump, read_recipe
from tests.support.grids import stage_run

NOTE = """#!/bin/sh
printf '%s\\n' "$*" >> "{log}"
case "$*" in *FAIL*) exit 3;; esac
"""
SUBMIT = """#!/bin/sh
n=$(cat "{log}.n" 2>/dev/null || echo 100); n=$((n+1)); echo $n > "{log}.n"
dependency=none
while [ $# -gt 0 ]; do case "$1" in
  --dependency=*) dependency="$1";;
  --wrap) sh -e -c "$2" || exit 1;;
esac; shift; done
printf 'job %s %s\\n' $n "$dependency" >> "{log}"
echo $n
"""


def shell(tmp_path, lines):
    """Runs a script with the two programs; returns its exit code and what it called."""
    log = tmp_path / "log"
    for name, text in (("torchrun", NOTE), ("sbatch", SUBMIT)):
        path = tmp_path / "bin" / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(text.format(log=log))
        path.chmod(0o755)
    env = {**os.environ, "PATH": f"{tmp_path / 'bin'}:{os.environ['PATH']}", "GPUS": "4"}
    result = subprocess.run(["sh"], input=lines, text=True, env=env, capture_output=True, check=False)
    called = log.read_text().splitlines() if log.exists() else []
    log.unlink(missing_ok=True)
    return result.returncode, called


@pytest.fixture
def script(tmp_path):
    """script(starter) -> the exit code of the script of two runs, what it called, and the store."""
    folder = tmp_path / "a folder's name"  # the shell must not divide it
    store = Store(folder / "store")
    first = replace(stage_run("first"), stage="pretrain")
    last = [stage_run(key, before=first) for key in ("plain", "other")]
    runs = [
        GridRun(
            arm=each.key, equal="steps", seed=1, root=str(folder / "data"), branch=0, stages=(first, each),
            questions={"answers": f"questions of {each.key}"},
        )
        for each in last
    ]  # fmt: skip
    for key in ("first", "plain", "other"):  # as `train` would write them
        model = store.run(key).model("pretrain" if key == "first" else "finetune")
        model.mkdir(parents=True)
        (model / "weights").write_text(key)
        store.run(key).resolved.write_text(dump(first.recipe))

    def run(starter, trained=()):
        for key in trained:
            folder = store.run(key).model("pretrain" if key == "first" else "finetune")
            (folder / "config.json").write_text("{}")
        lines = "\n".join(command_lines(store, work_of(store, runs), starter))
        return *shell(tmp_path, lines), store

    return run


def heads(called):
    return [line.split(" -m lmmkit ")[1].split()[0] for line in called if " -m lmmkit " in line]


def test_torchrun_lines_do_all_that_is_left_in_order(script):
    code, called, store = script("torchrun")
    assert code == 0 and heads(called) == ["train", "train", "eval", "train", "eval"]
    assert all(line.startswith("--standalone --nproc-per-node 4 -m lmmkit ") for line in called)
    assert f"--out {store.run('plain').path} --stage finetune" in called[1]
    recipe = read_recipe(store.recipe("plain"))
    assert recipe.stages["finetune"].start == str(store.model(stage_run("first")))
    linked = store.run("plain").model("pretrain") / "weights"
    assert linked.samefile(store.run("first").model("pretrain") / "weights")
    note = json.loads(store.evaluated("plain").read_text())
    assert note == {"answers": "questions of plain"}, "so the grid evaluates nothing again"


def test_jobs_of_slurm_wait_for_what_they_need(script):
    code, called, _ = script("slurm")
    jobs = [line for line in called if line.startswith("job ")]
    assert code == 0 and heads(called) == ["train", "train", "eval", "train", "eval"]
    assert jobs == [
        "job 101 none",
        "job 102 --dependency=afterok:101",
        "job 103 --dependency=afterok:101:102",
        "job 104 --dependency=afterok:101",
        "job 105 --dependency=afterok:101:104",
    ]


def test_what_is_trained_is_left_out(script):
    _, called, _ = script("torchrun", trained=("first", "plain"))
    assert heads(called) == ["eval", "train", "eval"]
    _, called, _ = script("slurm", trained=("first", "plain"))
    assert next(line for line in called if line.startswith("job ")).endswith(" none")


@pytest.mark.parametrize("starter", ["torchrun", "slurm"])
def test_an_evaluation_that_lacks_the_model_of_a_stage_is_neither_run_nor_noted(tmp_path, starter):
    store = Store(tmp_path / "store")
    first = stage_run("first")
    second = replace(stage_run("second", before=first), stage="middle")
    run = GridRun(
        arm="a", equal="steps", seed=1, root=".", branch=0, questions={"answers": "q"},
        stages=(first, second, stage_run("last", before=second)),
    )  # fmt: skip
    for key in ("second", "last"):
        store.run(key).model("middle" if key == "second" else "finetune").mkdir(parents=True)
    code, called = shell(tmp_path, "\n".join(command_lines(store, [EvaluateRun(store, run)], starter)))
    assert code != 0 and heads(called) == [] and not store.evaluated("last").exists()
