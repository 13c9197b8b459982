"""The outcome of a grid, computed from runs with chosen figures."""

from __future__ import annotations

import json

import pytest

from lmmkit.ablation.arms import read_arms
from lmmkit.ablation.grid import read_grid
from lmmkit.ablation.summary import summarise_grid
from tests.support.grids import finished, write_answers, write_grid

GRID = """
base: plain.yaml
root: ROOT
seeds: [1, 2, 3]
measures: {right: answers/accuracy, order: terms/image_order/accuracy}
variants:
  direct: {recipe: direct.yaml}
  rate: {set: {stages.finetune.optim.lr: 1.0e-3}}
"""


@pytest.fixture
def grid(tmp_path):
    def read(text=GRID):
        file = read_grid(write_grid(tmp_path, tmp_path, text))
        return file, read_arms(file)

    return read


def run(arm, seed, right, **more):
    order = {"terms": {"image_order/accuracy": 0.5}} if arm == "direct" else {}
    return finished(arm, seed, {"answers": {"accuracy": right}, **order}, **more)


def outcome(grid, runs, text=GRID):
    summary = summarise_grid(*grid(text), runs)
    assert json.loads(json.dumps(summary)) == summary
    return {entry["variant"]: entry for entry in summary["arms"]}, summary


def test_differences_are_paired_by_seed(grid):
    runs = [run("base", s, v) for s, v in ((1, 0.2), (2, 0.6), (3, 0.4))]
    runs += [run("direct", s, v) for s, v in ((3, 0.5), (1, 0.3), (2, 0.8))]
    runs += [run("rate", s, v) for s, v in ((1, 0.2), (2, 0.6), (3, 0.4))]
    arms, summary = outcome(grid, runs)
    assert arms["base"]["measures"]["right"]["difference"] is None
    assert arms["base"]["measures"]["right"]["value"] == pytest.approx(0.4)
    found = arms["direct"]["measures"]["right"]["difference"]
    assert found["value"] == pytest.approx(0.4 / 3) and found["over"] == "seeds" and found["n"] == 3
    assert {pair["seed"]: round(pair["value"], 6) for pair in found["pairs"]} == {1: 0.1, 2: 0.2, 3: 0.1}
    assert found["low"] < found["value"] < found["high"] and found["p"] == pytest.approx(found["p_holm"])
    assert arms["rate"]["same_results_as"] == ["base"] and not arms["direct"]["same_results_as"]
    assert arms["rate"]["measures"]["right"]["difference"]["p"] is None
    assert arms["direct"]["measures"]["order"]["difference"] is None, "the base has no such figure"
    assert arms["direct"]["measures"]["order"]["value"] == pytest.approx(0.5)
    assert arms["rate"]["changes"][0]["key"] == "stages.finetune.optim.lr"
    assert summary["variants"] == ["direct", "rate"] and summary["format"] == 1


def test_holm_is_over_all_variants_and_all_that_is_held_equal(grid):
    runs = [
        run(arm, seed, value + 0.01 * seed * bonus, equal=equal)
        for equal in ("steps", "time")
        for arm, bonus in (("base", 0), ("direct", 1), ("rate", 2))
        for seed, value in ((1, 0.2), (2, 0.6), (3, 0.4))
    ]
    _, summary = outcome(grid, runs, GRID + "equal: [steps, time]\n")
    found = [
        entry["measures"]["right"]["difference"] for entry in summary["arms"] if entry["variant"] != "base"
    ]
    assert len(found) == 4
    assert min(each["p_holm"] for each in found) == pytest.approx(min(4 * each["p"] for each in found))


def test_branches_count_as_one_value(grid):
    runs = [run("base", s, v, branch=b) for s, b, v in ((1, 0, 0.1), (1, 1, 0.3), (2, 0, 0.4), (2, 1, 0.6))]
    runs += [
        run("direct", s, v, branch=b) for s, b, v in ((1, 0, 0.3), (1, 1, 0.3), (2, 0, 0.6), (2, 1, 0.8))
    ]
    arms, _ = outcome(grid, runs, GRID + "branch: {after: pretrain, times: 2}\n")
    found = arms["direct"]["measures"]["right"]["difference"]
    assert found["n"] == 2 and [round(pair["value"], 6) for pair in found["pairs"]] == [0.1, 0.2]
    assert len(arms["direct"]["measures"]["right"]["values"]) == 4


def test_a_run_without_partner_is_left_out(grid):
    runs = [run("base", 1, 0.5), run("direct", 1, 0.6), run("direct", 2, 0.9)]
    arms, _ = outcome(grid, runs)
    found = arms["direct"]["measures"]["right"]["difference"]
    assert found["n"] == 1 and found["value"] == pytest.approx(0.1) and found["low"] is None
    assert arms["rate"]["runs"] == [] and arms["rate"]["measures"]["right"]["difference"] is None


def test_questions_are_paired_by_id(grid, tmp_path):
    folders = {
        "base": write_answers(tmp_path / "base", [1.0, 0.0, 0.0, 0.0]),
        "direct": write_answers(tmp_path / "direct", [1.0, 1.0, 1.0, 0.0]),
    }
    runs = [run("base", 1, 0.25, folder=folders["base"]), run("direct", 1, 0.75, folder=folders["direct"])]
    arms, _ = outcome(grid, runs, GRID.replace("[1, 2, 3]", "[1]") + "interval: questions\n")
    found = arms["direct"]["measures"]["right"]["difference"]
    assert found["over"] == "questions" and found["n"] == 4 and found["value"] == pytest.approx(0.5)
    assert found["low"] == found["high"] == 0.5, "both images gain one of two"


def test_costs_are_those_of_whole_runs_and_unknown_where_a_process_was_lost(grid):
    arms, _ = outcome(grid, [run("base", 1, 0.5), run("base", 2, 0.5, cpu=None)])
    assert arms["base"]["cost"] == {"cpu_seconds": 20.0, "wall_seconds": 8.0, "tokens": 200.0, "steps": 12.0}
    assert arms["base"]["runs"][1]["cost"]["cpu_seconds"] is None
