"""The last lines of a training, from its metrics."""

from __future__ import annotations

import json

import pytest

from lmmkit.report.train_summary import cost, learned
from lmmkit.runs.run_folder import RunFolder


def record(step, stage, loss, **more):
    return {"step": step, "stage": stage, "loss": loss, "seconds": 2.0, "tokens": 500, **more}


@pytest.fixture
def run(tmp_path):
    def write(*records):
        (tmp_path / "run.json").write_text("{}")
        (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(each) + "\n" for each in records))
        return RunFolder(tmp_path)

    return write


def test_each_figure_is_next_to_its_chance_and_of_the_last_stage(run):
    figures = {
        "terms/a": 4.0,
        "chance/a": 7.0,
        "terms/a/right": 0.5,
        "chance/a/right": 0.25,
        "terms/odd": 1.0,
    }
    early = [record(i, "pretrain", 9.0, **figures) for i in range(1, 5)]
    late = [record(4 + i, "finetune", 2.0, **{**figures, "terms/a": float(i)}) for i in range(1, 41)]
    found = learned(run(*early, *late, {"step": 44, "stage": "finetune", "val/loss": 1.0}))
    assert found == (
        "a 39.5 (chance 7), a/right 0.5 (chance 0.25), odd 1; stage finetune, mean of its last 2 logged steps"
    )
    assert cost(run(*early, *late)).startswith("44 steps, 22,000 tokens, 1 min 28 s of training")


def test_without_chances_it_is_the_loss_and_empty_steps_are_no_figure(run):
    assert "loss 2; stage s" in learned(run(record(1, "s", 2.0), record(2, "s", 2.0)))
    assert "no loss" in learned(run(record(1, "s", None)))
    assert "a 3 (chance 5)" in learned(run(record(1, "s", 1.0, **{"terms/a": 3.0, "chance/a": 5.0})))
    mine = record(
        1, "s", 1.0, **{"terms/mine": 0.25, "terms/mine/right": 0.5, "terms/a": 3.0, "chance/a": 5.0}
    )
    assert learned(run(mine)).startswith("a 3 (chance 5), mine 0.25; stage s"), "a term of no known chance"
    assert "no step was logged" in learned(run())
    assert "2 steps (1 of them logged)" in cost(run(record(2, "s", 1.0)))
    assert cost(run()).startswith("0 steps, 0 tokens, 0 s")
