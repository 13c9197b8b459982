"""Attention weights that are too many for `speed.attention_mb` are refused before the run."""

from __future__ import annotations

import pytest

from lmmkit.errors import UserError
from lmmkit.plan.map_sizes import map_bytes, map_problems
from lmmkit.plan.prepare import prepare
from lmmkit.recipe import read_text
from lmmkit.training.preflight import preflight
from tests.conftest import PLAIN

PLUGIN = """
from dataclasses import dataclass
from lmmkit.api import AttnTo, Loss, Select, hookimpl
@dataclass(frozen=True, kw_only=True)
class Mine(Loss):
    needs = (AttnTo(q=Select(supervised=True)), AttnTo(q=Select(kind="text"), k=Select(kind="text"), layers=(0,)))
    def value(self, ctx):
        return sum(ctx[need].square().sum() for need in self.needs)
@hookimpl
def lmmkit_components():
    return {"mine": Mine}
"""


@pytest.fixture
def recipe(scenes, tmp_path):
    """Returns a recipe with a term that reads weights, for a number of rows a micro-batch and MiB."""
    (tmp_path / "mine.py").write_text(PLUGIN)
    text = PLAIN.replace("stages:", f"plugins:\n  mine: {{use: {tmp_path / 'mine.py'}}}\nstages:", 1)
    text = text.replace("{next_token: 1.0}", "{next_token: 1.0, mine: 0.1}")
    return lambda **speed: read_text(
        text,
        name="tiny.yaml",
        root=scenes,
        overrides=[f"speed.{key}={value}" for key, value in speed.items()],
    )


def test_the_size_is_that_of_the_maps_of_the_fullest_micro_batch(recipe):
    prepared = prepare(recipe(), trust_files=True)
    (stage, *_) = prepared.plans
    (batch,) = prepared.pipeline(stage).step(0)
    shapes = [batch.gathers[need].key_QK.shape for need in prepared.plans[stage].needs]
    assert map_bytes(batch.gathers) == 4 * sum(queries * keys for queries, keys in shapes) > 0
    assert map_problems(prepared) == []
    plain = prepared.recipe.stages[stage].batch.samples
    assert plain > 1


def test_more_than_the_setting_is_refused_before_the_run(recipe, monkeypatch):
    monkeypatch.setattr("lmmkit.plan.map_sizes.WIDE", 4 * 2**20)  # as if each weight took 4 MiB
    with pytest.raises(UserError) as error:
        preflight(recipe(), trust_files=True)
    problems = [p for p in error.value.problems if p.code == "plan/attn-size"]
    assert len(problems) == len(prepare(recipe(), trust_files=True).plans) == len(error.value.problems)
    assert "MiB in stage" in problems[0].got and "256 MiB" in problems[0].expected
    preflight(recipe(attention_mb=2**40), trust_files=True)


def test_micro_batches_may_become_as_full_as_the_setting_for_rows(recipe, monkeypatch):
    sizes = []
    monkeypatch.setattr("lmmkit.plan.map_sizes.map_bytes", lambda gathers: sizes.append(1) or 2**20)
    assert map_problems(prepare(recipe(attention_mb=1), trust_files=True)) == [] != sizes
    several = prepare(recipe(attention_mb=1, tokens=150), trust_files=True)
    assert {problem.code for problem in map_problems(several)} == {"plan/attn-size"}
