"""Mistakes of image reducers that a dry run finds without a model, and reducers that have none."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch
from lmmkit_zoo.keep_tokens import KeepTokens
from torch import nn

from lmmkit.api import ImageReducer
from lmmkit.plan.dry_run.reducer_checks import CHECKS, ReducerSubject
from lmmkit.plan.dry_run.run import plugin_problems
from lmmkit.plan.dry_run.subject import first_problems
from lmmkit.plan.prepare import prepare
from tests.conftest import PLAIN
from tests.support.paper_objective import DIMS


@dataclass(frozen=True, kw_only=True)
class Sound(ImageReducer):
    def tokens(self, dims):
        return 3

    def modules(self, dims):
        return nn.Linear(dims.image.width, dims.image.width)

    def reduce(self, features_INE, connect, module):
        return connect(module(features_INE[:, :3]))


@dataclass(frozen=True, kw_only=True)
class Draws(Sound):
    def reduce(self, features_INE, connect, module):
        return connect(module(features_INE[:, torch.randperm(9)[:3]]))


@dataclass(frozen=True, kw_only=True)
class Mixes(Sound):
    def reduce(self, features_INE, connect, module):
        return connect(module(features_INE[:, :3] - features_INE[:, :3].mean(0)))


@dataclass(frozen=True, kw_only=True)
class Changes(Sound):
    def reduce(self, features_INE, connect, module):
        return connect(module(features_INE.mul_(2)[:, :3]))


@dataclass(frozen=True, kw_only=True)
class Unused(Sound):
    def reduce(self, features_INE, connect, module):
        return connect(features_INE[:, :3])


@dataclass(frozen=True, kw_only=True)
class Half(Sound):
    def reduce(self, features_INE, connect, module):
        return connect(features_INE[:, :3] @ module.weight.T)


@dataclass(frozen=True, kw_only=True)
class Infinite(Sound):
    def reduce(self, features_INE, connect, module):
        return connect(module(features_INE[:, :3].log()))


@dataclass(frozen=True, kw_only=True)
class Wide(Sound):
    def reduce(self, features_INE, connect, module):
        return connect(module(features_INE[:, :4]))


@dataclass(frozen=True, kw_only=True)
class Own(Sound):
    def modules(self, dims):
        return nn.Linear(dims.image.width, dims.width)


def found(reducer: ImageReducer, *, alone: bool = False) -> list[str]:
    problems = first_problems(CHECKS, ReducerSubject(reducer, reducer.modules(DIMS), DIMS, alone))
    assert all(p.where.startswith("mine.reduce, test_reducer_checks.py:") for p in problems)
    return [p.code for p in problems]


@pytest.mark.parametrize(
    ("cls", "code"),
    [
        (Draws, "plugin/not-pure"), (Mixes, "plugin/not-pure"), (Changes, "plugin/in-place"),
        (Unused, "plugin/no-gradient"), (Half, "plugin/no-gradient"), (Infinite, "plugin/not-finite"),
        (Wide, "plugin/returned"), (Own, "plugin/raised"),
    ],
)  # fmt: skip
def test_a_mistake_is_named(cls, code):
    assert found(cls(name="mine")) == [code]


def test_sound_reducers_have_no_problem():
    assert found(Sound(name="mine")) == found(KeepTokens(name="mine", count=4)) == []
    assert found(Own(name="mine"), alone=True) == [] and found(Sound(name="mine"), alone=True) == [
        "plugin/returned"
    ]


def test_the_reducers_of_a_recipe_are_checked(tiny, tmp_path):
    file = tmp_path / "mine.py"
    file.write_text(
        "import torch\nfrom dataclasses import dataclass\nfrom lmmkit.api import ImageReducer, hookimpl\n"
        "@dataclass(frozen=True, kw_only=True)\nclass Mine(ImageReducer):\n"
        "    def tokens(self, dims):\n        return 4\n"
        "    def reduce(self, seen, connect, module):\n"
        "        return connect(seen[:, torch.randperm(9)[:4]])\n"
        "@hookimpl\ndef lmmkit_components():\n    return {'mine': Mine}\n"
    )
    text = PLAIN.replace("stages:", f"plugins:\n  mine: {{use: {file}}}\nstages:", 1)
    for overrides in ([], ["model.connector.reduce=mine"]):
        prepared = prepare(tiny(*overrides, text=text), trust_files=True)
        assert [p.code for p in plugin_problems(prepared)] == ["plugin/not-pure"]
