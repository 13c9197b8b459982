"""Registers, views from other samples and an image reducer on two ranks: the figures of one, and the same answers."""

from __future__ import annotations

import pytest

from lmmkit.inference.load import load
from lmmkit.training.run import train
from tests.training.distributed.test_fsdp import assert_near, mixed, model_of, trained  # noqa: F401

PLUGINS = """
from dataclasses import dataclass, replace
from torch import nn
from lmmkit.api import (
    AuxTask, HiddenMean, ImageReducer, Insert, LearnedTokens, Select, TokenStrategy, View, hookimpl,
)

@dataclass(frozen=True, kw_only=True)
class Registers(TokenStrategy):
    provides = ("register",)
    unread = True
    def modules(self, dims):
        return LearnedTokens(2, dims.width)
    def edit(self, view):
        places = ("start", "before_image", "after_image", "before_response", "after_response")
        return [*(Insert(at, "register", 2) for at in places), Insert("after_token", "register", 2, token=" a")]

@dataclass(frozen=True, kw_only=True)
class Negative(AuxTask):
    others = "source"
    @property
    def needs(self):
        return (HiddenMean(Select(view=self.name)),)
    def views(self, sample, rng, others):
        given = [other for other in others(4) if len(other.images) == len(sample.images)]
        return [View(sample=replace(sample, images=other.images)) for other in given[:1]]
    def value(self, ctx):
        return ctx[self.needs[0]].float().square().mean(-1).sum()

@dataclass(frozen=True, kw_only=True)
class Join(ImageReducer):
    def tokens(self, dims):
        return dims.image.grid[0]
    def modules(self, dims):
        return nn.Linear(dims.image.grid[1] * dims.image.width, dims.image.width)
    def reduce(self, seen, connect, module):
        rows = self.tokens_of(seen)
        return connect(module(seen.unflatten(1, (rows, rows)).flatten(2)))
    def tokens_of(self, seen):
        return round(seen.shape[1] ** 0.5)

@hookimpl
def lmmkit_components():
    return {"registers": Registers, "negative": Negative, "join": Join}
"""


@pytest.mark.slow
@pytest.mark.parametrize("recompute", ["none", "all"])
def test_tokens_views_and_reduced_rows_on_two_ranks_give_one_process_s_figures(mixed, tmp_path, recompute):  # noqa: F811
    (tmp_path / "mine.py").write_text(PLUGINS)
    recipe = mixed(
        *(f"plugins.{name}={{use: {tmp_path / 'mine.py'}}}" for name in ("registers", "negative", "join")),
        "stages.only.losses.negative=0.1", "stages.only.tokens=[registers]", "model.connector.reduce=join",
        f"speed.recompute={recompute}",
    )  # fmt: skip
    one = train(recipe, out=tmp_path / "one", trust_files=True).run
    assert sum(line["terms/negative"] or 0 for line in one.read_metrics()) > 0
    run = trained(2, recipe, tmp_path / "two", trust_files=True)
    assert_near(run, one, rel=5e-6)
    ours, theirs = model_of(run, "only"), model_of(one, "only")
    assert {"plugins.registers.weight", "plugins.join.weight"} <= set(ours)
    for name, tensor in ours.items():
        if not name.endswith("qkv.bias"):
            assert (tensor - theirs[name]).norm() <= 1e-4 * theirs[name].norm(), name
    chat = load(run.path, trust_files=True)
    assert [strategy.name for strategy, _ in chat.views.edits] == ["registers"]
    assert isinstance(chat.reply("Is there a circle?", max_new_tokens=4), str)


@pytest.mark.slow
@pytest.mark.parametrize(
    "connector",
    [
        "{kind: pixel_shuffle, factor: 2}",
        "{kind: average_pool, factor: 2}",
        "{kind: resampler, queries: 5, heads: 2}",
    ],
)
def test_a_connector_with_fewer_rows_on_two_ranks_gives_one_process_s_figures(mixed, tmp_path, connector):  # noqa: F811
    recipe = mixed("model.vision.patch=4", f"model.connector={connector}")
    one = train(recipe, out=tmp_path / "one").run
    run = trained(2, recipe, tmp_path / "two")
    assert_near(run, one, rel=5e-6)
    ours, theirs = model_of(run, "only"), model_of(one, "only")
    assert "lmm.connector.first.weight" in ours and ours.keys() == theirs.keys()
    for name, tensor in ours.items():
        if not name.endswith("qkv.bias"):
            assert (tensor - theirs[name]).norm() <= 1e-4 * theirs[name].norm(), name
