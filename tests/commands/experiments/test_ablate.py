"""lmmkit ablate: bad input, the example of docs/ablations.md, and grids that are stopped or killed."""

from __future__ import annotations

import json
import multiprocessing
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest

from lmmkit.ablation.trial import _ratio
from lmmkit.commands.experiments import apart
from tests.support.grids import write_grid
from tests.test_cli import run

ROOT = Path(__file__).resolve().parents[3]
EXAMPLE = re.search(r"```yaml\n(.*?)```", (ROOT / "docs" / "ablations.md").read_text(), re.DOTALL)
assert EXAMPLE is not None
GRID = EXAMPLE[1].replace("root: scenes", "root: ROOT")
ENV = {**os.environ, "OMP_NUM_THREADS": "1", "COLUMNS": "80"}


@pytest.fixture
def planned_in_a_fork(monkeypatch):
    """Plans in a fork of this process; that of the command, as in `test_apart.py`, imports torch for seconds."""
    fork = SimpleNamespace(get_context=lambda kind: multiprocessing.get_context("fork"))
    monkeypatch.setattr(apart, "multiprocessing", fork)


def ablate(*words: object, code: int = 0, **env: str) -> str:
    """Runs the command in a process of its own; returns its output."""
    command = [sys.executable, "-m", "lmmkit", "ablate", *map(str, words)]
    result = subprocess.run(command, capture_output=True, text=True, check=False, env={**ENV, **env})
    assert result.returncode == code, result.stdout + result.stderr
    assert "Traceback" not in result.stderr
    return result.stdout + result.stderr


def steps_of_all(store: Path) -> dict[str, list[int]]:
    """Returns the steps that each run has logged, in order."""
    return {
        path.parent.name: [json.loads(line)["step"] for line in path.read_text().splitlines()]
        for path in sorted((store / "runs").glob("*/metrics.jsonl"))
    }


def figures(store: Path) -> dict:
    """Returns the outcome without what depends on the machine and the place."""
    summary = json.loads((store / "grids" / "grid" / "ablation.json").read_text())
    for arm in summary["arms"]:
        arm.pop("cost")
        for each in arm["runs"]:
            each.pop("cost")
            each.pop("folder")
    return summary


def test_bad_grids_end_with_all_problems(tmp_path, scenes):
    path = write_grid(tmp_path, scenes, GRID.replace("[1, 2]", "[1]").replace("1.0e-3", "0"))
    text = run("ablate", path, code=2)
    assert "ablation/one-seed" in text and "recipe/out-of-range" in text and "variants.rate.set" in text
    assert not (tmp_path / "ablations").exists()


def test_a_variant_whose_plan_is_that_of_the_base_is_refused(tmp_path, scenes, planned_in_a_fork):
    unused = "{set: {plugins: {guided_loss: {}}, stages.finetune.losses.guided_loss: 0}}"
    path = write_grid(tmp_path, scenes, GRID + f"  unused: {unused}\n")
    assert "ablation/changes-nothing" in run("ablate", path, "--dry-run", code=2)


def test_options_that_exclude_each_other_are_refused(tmp_path, scenes):
    path = write_grid(tmp_path, scenes, GRID)
    emit = ["--emit", "slurm"]
    for words in (
        ["--dry-run", "--json"],
        ["--forecast", *emit],
        ["--dry-run", "--forecast"],
        [*emit, "--jobs", 2],
    ):
        assert "ablation/options" in run("ablate", path, *words, code=2)


def test_runs_that_could_not_be_kept_are_not_measured(tmp_path, scenes, monkeypatch):
    monkeypatch.setattr("lmmkit.commands.experiments.apart.apart", lambda *arguments: pytest.fail("measured"))
    (tmp_path / "ablations").write_text("a file")
    assert "files/cannot-write" in run("ablate", write_grid(tmp_path, scenes, GRID), code=3)


def test_a_step_that_others_held_up_does_not_change_the_ratio_of_costs():
    assert _ratio([2.0, 4.0, 90.0], [1.0, 2.0, 3.0]) == 2.0


def test_missing_data_is_reported(tmp_path, planned_in_a_fork):
    path = write_grid(tmp_path, tmp_path / "nowhere", GRID)
    assert "nowhere" in run("ablate", path, "--dry-run", code=2)


@pytest.mark.slow
def test_the_example_of_the_docs_runs_is_stopped_killed_and_continues_with_the_same_table(tmp_path, scenes):
    path = write_grid(tmp_path, scenes, GRID)
    store = tmp_path / "ablations"
    plan = ablate(path, "--dry-run")
    assert "16 commands are left" in plan and "to do" in plan and "`--forecast` measures" in plan
    assert not store.exists(), "a dry run measures and trains nothing"
    forecast = ablate(path, "--forecast")
    assert "16 commands are left: about" in forecast and "CPU time" in forecast
    assert not list((store / "runs").glob("*")), "a forecast trains no run"
    script = ablate(path, "--emit", "slurm")
    assert script.count("sbatch --parsable") == 16 and "--dependency=afterok:$job1" in script
    draw = random.Random(0)
    for signum in (signal.SIGINT, signal.SIGTERM, signal.SIGKILL):
        process = subprocess.Popen(
            [sys.executable, "-m", "lmmkit", "ablate", str(path), "--jobs", "2"], env=ENV, stderr=subprocess.PIPE,
            text=True,
        )  # fmt: skip
        assert process.stderr is not None
        for line in process.stderr:
            if line.startswith("$ lmmkit"):
                break
        time.sleep(draw.uniform(2, 14))
        process.send_signal(signum)
        process.communicate(timeout=200)
        expected = {signal.SIGINT: 130, signal.SIGTERM: 143, signal.SIGKILL: -9}[signum]
        assert process.returncode == expected
    text = ablate(path, "--jobs", "2")
    assert (
        "direct" in text
        and "difference" in text
        and max(map(len, text.split("difference: ")[0].splitlines())) > 60
    )
    steps = steps_of_all(store)
    assert len(steps) == 10, "six runs, of which base and rate share the first stage"
    assert sorted(map(tuple, steps.values())) == sorted([tuple(range(1, 7))] * 4 + [tuple(range(7, 13))] * 6)
    stopped = figures(store)
    times = {p: p.stat().st_mtime_ns for p in store.glob("runs/*/model/*/*")}
    again = ablate(path)
    assert "everything is done" in again and "$ lmmkit" not in again
    assert times == {p: p.stat().st_mtime_ns for p in store.glob("runs/*/model/*/*")}
    assert figures(store) == stopped
    whole = ablate(path, "--runs", tmp_path / "whole", "--jobs", "2")
    assert figures(tmp_path / "whole") == stopped, whole


@pytest.mark.slow
def test_a_failed_run_is_named_and_ends_no_other_and_grids_share_runs(tmp_path, scenes):
    path = write_grid(tmp_path, scenes, GRID.replace("  direct: {recipe: direct.yaml}\n", ""))
    store = tmp_path / "ablations"
    plan = ablate(path, "--dry-run")
    key = re.findall(r"finetune (\w{12})", plan)[1]  # of `rate` with seed 1
    blocked = store / "runs" / key
    blocked.mkdir(parents=True)
    (blocked / "a file of somebody else").write_text("")
    text = ablate(path, "--jobs", "2", code=2)
    assert f"failed: rate, seed 1, finetune, {key} train: {store / 'logs' / f'{key}-train.log'}" in text
    assert f"failed: rate, seed 1, {key} eval: needs {key} train" in text
    assert "rate: 1 of 2 runs are finished" in text and len(steps_of_all(store)) == 5
    shutil.rmtree(blocked)
    trained = steps_of_all(store)
    text = ablate(path, "--dry-run")
    assert "2 commands are left" in text and text.count("done") == 3 and "has pretrain" in text
    other = tmp_path / "other.yaml"
    other.write_text(path.read_text().replace("1.0e-3", "5.0e-4"))
    assert "4 commands are left" in ablate(other, "--dry-run")
    ablate(path)
    assert trained.items() < steps_of_all(store).items()
