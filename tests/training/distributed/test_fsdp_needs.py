"""Needs of inner states and of vision features on two ranks, one of which may have no image: the figures of one."""

from __future__ import annotations

import pytest

from lmmkit.training.run import train
from tests.training.distributed.test_fsdp import MIXED, assert_near, mixed, model_of, trained  # noqa: F401

READER = """
from dataclasses import dataclass
import torch
from lmmkit.api import HiddenAt, HiddenMean, Loss, Select, VisionAt, hookimpl

IMAGES = Select(kind="image")

@dataclass(frozen=True, kw_only=True)
class Mine(Loss):
    needs = (
        HiddenAt(IMAGES, layer=1), HiddenMean(Select(role="response"), layer=0), HiddenMean(IMAGES),
        VisionAt(IMAGES, detach=False), VisionAt(IMAGES, "projected", detach=False),
    )
    def labels(self, sample, dims):
        return {"words": len(sample.turns[1].text.split())}
    def count(self, batch):
        return len(batch.views_of("main"))
    def value(self, ctx):
        sums = [torch.tanh(ctx[need]).square().mean(-1).sum() for need in self.needs]
        return torch.stack(sums).sum() * (1 + ctx.progress) + ctx.label("words").float().sum()

@hookimpl
def lmmkit_components():
    return {"mine": Mine}
"""


@pytest.mark.slow
@pytest.mark.parametrize("recompute", ["none", "all"])
def test_needs_on_two_ranks_give_one_process_s_figures(mixed, tiny, tmp_path, recompute):  # noqa: F811 (writes the data)
    (tmp_path / "mine.py").write_text(READER)
    text = MIXED.replace("plugins:\n", f"plugins:\n  mine: {{use: {tmp_path / 'mine.py'}}}\n", 1)
    text = text.replace("guided_loss: 0.5}", "guided_loss: 0.5, mine: 0.1}").replace("depth: 1", "depth: 2")
    recipe = tiny(f"speed.recompute={recompute}", text=text)
    one = train(recipe, out=tmp_path / "one", trust_files=True).run
    assert all(line["terms/mine"] > 0 for line in one.read_metrics())
    run = trained(2, recipe, tmp_path / "two", trust_files=True)
    assert_near(run, one, rel=5e-6)
    ours, theirs = model_of(run, "only"), model_of(one, "only")
    for name, tensor in ours.items():
        # a bias of keys has no gradient but rounding, which Adam makes large
        if not name.endswith("qkv.bias"):
            assert (tensor - theirs[name]).norm() <= 1e-4 * theirs[name].norm(), name
