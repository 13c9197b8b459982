"""The plan of a grid: what is measured, what is not, and variants whose steps fail."""

from __future__ import annotations

import shutil
from dataclasses import asdict, replace
from pathlib import Path

import pytest

from lmmkit.ablation.arms import read_arms
from lmmkit.ablation.forecast import ProcessCost
from lmmkit.ablation.grid import read_grid
from lmmkit.ablation.store import Store
from lmmkit.commands.experiments import planning, process_trial
from lmmkit.commands.experiments.ablate import Plan
from lmmkit.commands.experiments.planning import Options, plan_grid
from lmmkit.errors import UserError
from lmmkit.runs.files import write_json_atomic
from tests.support.grids import write_grid

FAULTY = Path(__file__).resolve().parents[2] / "support" / "faulty_plugin.py"
BROKEN = f"""
    set:
      plugins: {{faulty: {{use: "{FAULTY}", fails: value}}, token: {{use: "{FAULTY}"}}}}
      stages.finetune.losses.faulty: 1.0
"""
GRID = f"""
base: plain.yaml
root: ROOT
seeds: [1, 2]
equal: [steps, time]
measures: {{right: answers/accuracy}}
variants:
  rate: {{set: {{stages.finetune.optim.lr: 1.0e-3}}}}
  broken: {BROKEN}
"""
OPTIONS = Options(trust_files=True, quiet=True)
COST = ProcessCost(train=5.0, evaluate=3.0, tasks={"answers": 0.1, "terms": 0.05}, wall=1.5)


@pytest.fixture
def opened(tmp_path, scenes):
    """opened(text) -> the file, arms and store of a grid."""

    def read(text: str = GRID):
        file = read_grid(write_grid(tmp_path, scenes, text))
        return file, read_arms(file), Store(tmp_path / "ablations")

    return read


def test_without_measurements_nothing_is_measured_and_lengths_are_named(opened, monkeypatch):
    def measured(*arguments):
        raise AssertionError("a dry run measures")

    monkeypatch.setattr("lmmkit.ablation.trial.step_costs", measured)
    monkeypatch.setattr(process_trial, "process_cost", measured)
    file, arms, store = opened()
    found = plan_grid(file, arms, store, 2, "nothing", OPTIONS)
    assert not store.root.exists()
    assert found.forecast is None and found.failed == {} and found.side == 2
    assert found.unmeasured == ("rate (equal time)", "broken (equal time)")
    assert sorted({(run.arm, run.equal) for run in found.runs}) == [
        ("base", "steps"),
        ("base", "time"),
        ("broken", "steps"),
        ("rate", "steps"),
    ]
    text = Plan(file, arms, store, found).forecast_text()
    assert "broken (equal time)" in text and "`--forecast` measures" in text
    plan = Plan(file, arms, store, found)
    name = f"{found.runs[0].last.key} train"
    assert plan.label(name) == f"base, equal steps, seed 1, finetune, {name}"
    assert plan.label(name.replace("train", "eval")).endswith(f"seed 1, {name.replace('train', 'eval')}")


def test_a_variant_whose_steps_fail_is_left_out_and_others_are_forecast(opened, monkeypatch):
    monkeypatch.setattr(process_trial, "process_cost", lambda *arguments, **more: COST)
    file, arms, store = opened()
    found = plan_grid(file, arms, store, 1, "all", OPTIONS)
    assert set(found.failed) == {"broken"} and found.unmeasured == ()
    (problem,) = found.failed["broken"].problems
    assert problem.code == "plugin/raised" and problem.where.startswith("faulty.value")
    assert {run.arm for run in found.runs} == {"base", "rate"}
    assert found.forecast is not None and found.forecast.cpu_seconds > 0
    busy = Plan(file, arms, store, replace(found, forecast=replace(found.forecast, load=3.0))).forecast_text()
    assert "if nothing else runs, " in busy and "as busy as it is" in busy
    calm = Plan(file, arms, store, replace(found, forecast=replace(found.forecast, load=1.0))).forecast_text()
    assert calm.endswith(" if nothing else runs")
    again = plan_grid(file, arms, store, 1, "nothing", OPTIONS)
    assert {run.key for run in found.runs} <= {run.key for run in again.runs}, "kept measurements, same keys"
    assert again.unmeasured == ("broken (equal time)",)


def test_a_base_whose_steps_fail_ends_the_grid(opened):
    text = GRID.replace("seeds: [1, 2]", f"seeds: [1, 2]\nset: {BROKEN.split('set:')[1]}")
    text = text[: text.index("  broken")]
    with pytest.raises(UserError) as error:
        plan_grid(*opened(text), 1, "lengths", OPTIONS)
    assert error.value.problems[0].code == "plugin/raised"


def test_kept_measurements_of_commands_are_read_again(opened):
    file, arms, store = opened()
    (base, *_) = planning._opened(file, arms, True)
    path = process_trial._path(store, base)
    assert process_trial.kept_process_cost(store, base) is None
    path.parent.mkdir(parents=True)
    write_json_atomic(path, asdict(COST))
    assert process_trial.kept_process_cost(store, base) == COST
    assert process_trial.process_cost(store, base, {}, load=0.0) == COST


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ("evaluate.tasks.answers.samples: 8", "8 questions with the hash"),
        ("evaluate.tasks.answers.match: normalised", "by the rule `normalised`"),
        ("evaluate.tasks.answers.data: questions", "questions with the hash"),
        ("evaluate.tasks.answers.max_new_tokens: 3", None),
        ("evaluate.tasks.answers.samples: 1000", None),
        ("data.heldout.image_fit: crop", None),
    ],
)
def test_a_variant_that_would_answer_other_questions_is_refused_before_it_is_trained(opened, change, named):
    text = (
        GRID.split("  broken")[0].replace("1.0e-3}", f"1.0e-3, {change}}}").replace("[steps, time]", "steps")
    )
    if named is None:
        assert plan_grid(*opened(text), 2, "nothing", OPTIONS).runs
        return
    with pytest.raises(UserError) as error:
        plan_grid(*opened(text), 2, "nothing", OPTIONS)
    (problem,) = error.value.problems
    assert problem.code == "ablation/unlike-questions" and problem.where.endswith("variants.rate")
    assert named in problem.got and "`base`: 72 questions with the hash" in problem.expected


def test_data_folders_with_the_same_data_are_refused(opened, scenes, tmp_path):
    copy = shutil.copytree(scenes, tmp_path / "copy")
    text = GRID.split("  broken")[0].replace("root: ROOT", f"root: [ROOT, {copy}]")
    with pytest.raises(UserError, match="ablation/equal-roots") as error:
        plan_grid(*opened(text), 2, "nothing", OPTIONS)
    (problem,) = error.value.problems
    assert problem.got == f"`{copy}`, with the same data as `{scenes}`" and problem.where.endswith("root.1")
