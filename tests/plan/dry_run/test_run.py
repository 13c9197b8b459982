"""Each mistake of `plugin_mistakes/` is reported under its name; sound plugins are not."""

from __future__ import annotations

import json
import random
from pathlib import Path

import pytest

from lmmkit.errors import Problem, UserError
from lmmkit.plan.dry_run.run import narrowed, plugin_problems, view_subject
from lmmkit.plan.dry_run.second_process import other_views
from lmmkit.plan.prepare import prepare
from lmmkit.recipe import read_recipe
from lmmkit.recipe.shipped import shipped
from tests.plugins.test_zoo import offered, with_its_records, with_its_teacher  # noqa: F401
from tests.support.mistakes import FOLDER, MISTAKES, constants, recipe_text

SOUND = sorted((FOLDER.parent / "sound_plugins").glob("*.py"))


def problems(recipe) -> list[Problem]:
    """Returns what `lmmkit check` finds in a recipe's plugins."""
    try:
        prepared = prepare(recipe, trust_files=True)
    except UserError as error:
        return list(error.problems)
    return plugin_problems(prepared)


@pytest.mark.parametrize("path", MISTAKES, ids=lambda path: f"{path.parent.name}-{path.stem}")
def test_a_mistake_is_reported_at_its_method(path, tiny, tmp_path):
    random.seed(0)  # for a mistake that draws from it
    of, overrides = constants(path), []
    if "DATA" in of:
        talk = [{"from": "human", "value": "Is it so?"}, {"from": "gpt", "value": "It is."}]
        records = [{"id": str(i), "conversations": talk, "kind": "talk"} for i in range(20)]
        (tmp_path / "text.json").write_text(json.dumps(records))
        overrides = [f"data.questions.records={tmp_path / 'text.json'}"]
    recipe = tiny(*overrides, text=recipe_text(path))
    found = problems(recipe)
    if "SECOND" in of:
        assert found == [], "it is found by a second process, which is tried below"
    else:
        assert_reported(found, [path])


def assert_reported(found: list[Problem], paths: list[Path]) -> None:
    """Asserts that each mistake is reported once, at its method, and that nothing else is."""
    of = {path: constants(path) for path in paths}
    assert [p.code for p in found] == [of[path]["CODE"] for path in paths]
    for problem, path in zip(found, paths, strict=True):
        where = of[path]["WHERE"]
        assert problem.where.split(", ")[0].endswith(where)
        assert where.startswith("plugins.") or f"{path.name}:" in problem.where


@pytest.mark.parametrize("path", SOUND, ids=lambda path: path.stem)
def test_a_sound_plugin_has_no_problem(path, tiny):
    assert problems(tiny(text=recipe_text(path))) == []


def test_a_second_process_shows_what_a_second_call_cannot(tiny):
    """Asks one process, which takes seconds, about these mistakes, all sound plugins, and the paper's."""
    hidden = [path for path in MISTAKES if "SECOND" in constants(path)]
    subjects, paper = {}, prepare(tiny())
    for path in (*hidden, *SOUND):
        prepared = prepare(tiny(text=recipe_text(path)), trust_files=True)
        for task in prepared.plans["only"].tasks:
            subjects[f"{path} {task.name}"] = view_subject(prepared, "only", task)
    for stage, plan in paper.plans.items():
        for task in plan.tasks:
            subjects[f"{stage} {task.name}"] = view_subject(paper, stage, task)
    assert len(subjects) > len(hidden) + 3
    assert_reported(other_views(subjects), hidden)


SCENES = [
    name
    for name, path in shipped().items()
    if "vision:    {width" in path.read_text()
    and not name.startswith("miniature/")  # their world has other records
]


@pytest.mark.parametrize("name", SCENES)
def test_the_plugins_of_a_shipped_recipe_have_no_problem(name, scenes, offered, tmp_path, monkeypatch):  # noqa: F811
    """Tries those on drawn scenes; `tests/test_recipes.py` checks the others with true shapes."""
    root = with_its_records(shipped()[name], scenes, tmp_path, monkeypatch)
    root = with_its_teacher(shipped()[name], root, tmp_path)
    assert plugin_problems(prepare(read_recipe(shipped()[name], root=root))) == []


def test_the_paper_s_plugins_have_no_problem(tiny):
    assert plugin_problems(prepare(tiny())) == []


HARD = """
from dataclasses import dataclass
from torch import nn
from lmmkit.api import HiddenAt, Loss, Select, hookimpl

@dataclass(frozen=True, kw_only=True)
class Head(Loss):
    @property
    def needs(self):
        return (HiddenAt(Select(supervised=True)),)
    def modules(self, dims):
        return nn.Linear(WIDTH, 2)
    def value(self, ctx):
        return ctx.module(ctx[self.needs[0]]).square().sum()

@hookimpl
def lmmkit_components():
    return {"mistake": Head}
"""


@pytest.mark.parametrize(("width", "codes"), [(1024, []), (1000, ["plugin/raised"])])
def test_a_wide_model_is_tried_narrow_and_a_problem_is_confirmed(width, codes, tiny, tmp_path):
    """Takes a plugin that works with one width only: that of the recipe, or another."""
    file = tmp_path / "hard.py"
    file.write_text(HARD.replace("WIDTH", str(width)))
    wide = "model.text={width: 1024, depth: 1, heads: 8, mlp: 48, context: 256}"
    prepared = prepare(tiny(wide, text=recipe_text(file)), trust_files=True)
    assert narrowed(prepared.dims).width == 96 and narrowed(narrowed(prepared.dims)).width == 96
    assert [p.code for p in plugin_problems(prepared)] == codes


def test_the_dry_run_draws_from_no_global_generator(tiny):
    import numpy as np
    import torch

    before = random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state()
    assert plugin_problems(prepare(tiny())) == []
    after = random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state()
    assert before[:2] == after[:2] and torch.equal(before[2], after[2])
    assert not torch.are_deterministic_algorithms_enabled()
