"""The forecast of a grid: what is left, and how commands side by side end."""

from __future__ import annotations

import itertools
import json
import os
import random

import pytest

from lmmkit.ablation.forecast import (
    LeftCommand,
    ProcessCost,
    forecast,
    makespan,
    seconds_alone,
    slowed,
    task_counts,
)  # fmt: skip
from lmmkit.ablation.planned_runs import GridRun
from lmmkit.ablation.store import Store
from lmmkit.ablation.trial import StepCost
from lmmkit.recipe import read_text
from tests.conftest import PLAIN
from tests.support.grids import stage_run

COST = ProcessCost(train=5.0, evaluate=3.0, tasks={"answers": 0.1, "terms": 0.05}, wall=1.5)


def simulated(items, side, tick=0.5):
    """Returns the end of the last item, by a clock of small ticks."""
    left, ended, now = {item.name: item.seconds for item in items}, set(), 0.0
    running: list[LeftCommand] = []
    while len(ended) < len(items):
        ready = [i for i in items if i.name not in ended and i not in running and ended.issuperset(i.after)]
        running += ready[: side - len(running)]
        now += tick
        for item in list(running):
            left[item.name] -= tick
            if left[item.name] <= 0:
                running.remove(item)
                ended.add(item.name)
    return now


def test_the_end_of_commands_side_by_side_is_that_of_a_clock():
    draw = random.Random(3)
    for side, _ in itertools.product((1, 2, 3), range(20)):
        items: list[LeftCommand] = []
        for i in range(draw.randrange(1, 9)):
            after = tuple(each.name for each in items if draw.random() < 0.3)
            items.append(LeftCommand(str(i), draw.randrange(1, 12) / 2, after))
        assert makespan(items, side) == pytest.approx(simulated(items, side)), items
    assert makespan([], 2) == 0


def runs_of(steps):
    first = stage_run("first", steps=steps, shape="one")
    last = [stage_run(key, before=first, steps=steps, shape="two") for key in ("plain", "other")]
    return [
        GridRun(
            arm=run.key,
            equal="steps",
            seed=1,
            root="r",
            branch=0,
            stages=(first, run),
            questions={"answers": "q"},
        )
        for run in last
    ]


def test_a_process_is_not_faster_alone_than_its_threads_allow():
    full = len(os.sched_getaffinity(0))
    slow = seconds_alone(cpu=10, wall=60, load=3 * full - 1, threads=1)
    assert slow == pytest.approx(2.0), (
        "three times as many processes as cores, and twice the CPU time beside that"
    )
    assert seconds_alone(cpu=10, wall=11, load=3 * full - 1, threads=1) == 1.0, "it had priority"
    assert seconds_alone(cpu=10, wall=11, load=3 * full - 1, threads=2) == 0.5
    assert seconds_alone(cpu=0, wall=0, load=0, threads=1) == 1.0


def test_a_shared_stage_is_counted_once_and_what_is_done_not_at_all(tmp_path):
    store, runs = Store(tmp_path), runs_of(100)
    costs = {
        name: StepCost(cpu_seconds=s, wall_seconds=s, tokens=1) for name, s in (("one", 0.5), ("two", 0.2))
    }
    arguments = (store, runs, costs, COST, {"r": {"heldout": 40}})
    whole = forecast(*arguments, {}, 2)
    assert len(whole.items) == 5
    evaluation = 3.0 + 0.1 * 40
    assert whole.cpu_seconds == pytest.approx((5 + 50) + 2 * (5 + 20) + 2 * evaluation)
    assert whole.wall_seconds >= 1.5 * (55 + 25 + evaluation) - 1e-9
    assert forecast(*arguments, {"first": 60}, 2).cpu_seconds == pytest.approx(whole.cpu_seconds - 30)
    busy = forecast(*arguments, {}, 2, load=1000.0)
    assert (
        busy.wall_seconds == pytest.approx(whole.wall_seconds * slowed(1002) / slowed(2)) and slowed(0.5) == 1
    )
    assert busy.cpu_seconds == whole.cpu_seconds and busy.idle_seconds == whole.idle_seconds
    assert whole.idle_seconds == whole.wall_seconds and busy.load == slowed(1002) / slowed(2)
    model = store.run("first").model("pretrain")
    model.mkdir(parents=True)
    (model / "config.json").write_text("{}")
    store.run("first").run_json.write_text("{}")
    assert forecast(*arguments, {}, 2).cpu_seconds == pytest.approx(whole.cpu_seconds - 55)


def test_runs_that_are_done_replace_the_trial(tmp_path):
    store, runs = Store(tmp_path), runs_of(100)
    for folder in (store.model(runs[0].stages[0]), store.model(runs[0].last)):
        folder.mkdir(parents=True)
        (folder / "config.json").write_text("{}")
    for key, cpu in (("first", 1.0), ("plain", 45.0)):
        store.run(key).run_json.write_text(json.dumps({"sessions": [{"cpu_seconds": cpu}]}))
    found = forecast(store, runs, {}, COST, {"r": {"heldout": 40}}, {}, 1)
    (item,) = [item for item in found.items if item.name == "other train"]
    assert item.seconds == pytest.approx(45.0)


def test_the_samples_of_tasks():
    recipe = read_text(PLAIN, overrides=["evaluate.tasks.terms.samples=10"])
    assert task_counts(recipe, {"heldout": 72}) == {"answers": 72, "terms": 10}
