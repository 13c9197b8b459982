"""Attention to chosen keys on two ranks, one of which may have no image: the figures of one."""

from __future__ import annotations

import pytest

from lmmkit.training.run import train
from tests.training.distributed.test_fsdp import MIXED, assert_near, mixed, model_of, trained  # noqa: F401

READER = """
from dataclasses import dataclass
import torch
from lmmkit.api import AttnMass, AttnTo, Loss, Select, hookimpl

ANSWER, IMAGES = Select(role="response"), Select(kind="image")

@dataclass(frozen=True, kw_only=True)
class Mine(Loss):
    needs = (
        AttnTo(q=ANSWER, k=IMAGES), AttnTo(q=ANSWER, k=IMAGES, layers=(1,), heads=(0,)),
        AttnMass(q=ANSWER, k=Select(role="user")),
    )
    def count(self, batch):
        return batch.value_count(self.needs[0]) + batch.value_count(self.needs[2])
    def value(self, ctx):
        return torch.stack([torch.sqrt(ctx[need] + 1e-3).sum() for need in self.needs]).sum()

@hookimpl
def lmmkit_components():
    return {"mine": Mine}
"""


@pytest.mark.slow
@pytest.mark.parametrize("recompute", ["none", "all"])
def test_attention_on_two_ranks_gives_one_process_s_figures(mixed, tiny, tmp_path, recompute):  # noqa: F811
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
        if not name.endswith("qkv.bias"):  # that of keys has no gradient but rounding, which Adam makes large
            assert (tensor - theirs[name]).norm() <= 1e-4 * theirs[name].norm(), name
