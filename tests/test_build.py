"""The order of the build: what a stage trains, and what initial values fill."""

from __future__ import annotations

import torch

from lmmkit import build
from lmmkit.plan.prepare import prepare
from lmmkit.training.run import train
from tests.conftest import PLAIN

PLUGIN = '''
from dataclasses import dataclass
import torch
from torch import nn
from lmmkit.api import HiddenMean, Loss, Select, hookimpl


class Centre(nn.Module):
    """A buffer and no parameter."""

    def __init__(self, width):
        super().__init__()
        self.register_buffer("centre", torch.empty(width))

    def reset_parameters(self):
        self.centre.normal_()


class Parts(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.fixed, self.free = nn.Linear(width, 4), nn.Linear(width, 4)
        self.fixed.requires_grad_(False)
        self.centre = Centre(width)


@dataclass(frozen=True, kw_only=True)
class Mine(Loss):
    needs = (HiddenMean(Select(kind="image")),)

    def modules(self, dims):
        return Parts(dims.width)

    def value(self, ctx):
        x = ctx[self.needs[0]] - ctx.module.centre.centre
        return (ctx.module.fixed(x) - ctx.module.free(x)).square().mean(-1).sum()


@hookimpl
def lmmkit_components():
    return {"mine": Mine}
'''


def recipe(tiny, tmp_path):
    (tmp_path / "mine.py").write_text(PLUGIN)
    text = PLAIN.replace("stages:", f"plugins:\n  mine: {{use: {tmp_path / 'mine.py'}}}\nstages:", 1)
    return tiny(text=text.replace("{next_token: 1.0}", "{next_token: 1.0, mine: 0.1}"))


def objective(made):
    prepared = prepare(made, trust_files=True)
    built = build.build_objective(made, prepared.instances.components, prepared.dims, torch.device("cpu"))
    return prepared, built


def test_a_parameter_that_a_plugin_froze_is_never_trained(tiny, tmp_path):
    made = recipe(tiny, tmp_path)
    prepared, built = objective(made)
    module = built.plugins["mine"]
    for stage in ("pretrain", "finetune"):  # also when a stage follows another
        trainable = build.set_stage(built, prepared.plans[stage], made.stages[stage], seed=5)
        assert {id(p) for p in trainable["plugins"]} == {id(p) for p in module.free.parameters()}
        assert [p.requires_grad for p in module.fixed.parameters()] == [False, False]
    before = module.fixed.weight.clone()
    run = train(made, out=tmp_path / "run", trust_files=True).run
    assert [line for line in run.read_metrics() if line.get("terms/mine", 0) > 0]
    build.start(built, run.model("finetune"))
    assert torch.equal(before, module.fixed.weight)


def test_a_module_with_buffers_alone_is_filled_from_the_seed(tiny, tmp_path):
    made = recipe(tiny, tmp_path)
    first, second = (objective(made)[1].plugins["mine"].centre.centre for _ in range(2))
    assert torch.equal(first, second) and 0.5 < float(first.std()) < 1.5
