"""A trainable part without a gradient is reported once, after the first steps."""

from __future__ import annotations

import json

import pytest
import torch
from torch import nn

from lmmkit.training.monitoring.unreached_parts import FIRST_STEPS, UnreachedParts
from lmmkit.training.run import train
from lmmkit.training.step import StepReport
from lmmkit.training.triggers import Position
from tests.conftest import PLAIN

FULL = StepReport(loss=1.0, terms={}, grad_norm=1.0, tokens=1)
EMPTY = StepReport(loss=None, terms={}, grad_norm=None, tokens=0)


def check_of(steps: int) -> tuple[UnreachedParts, nn.Parameter, nn.Parameter]:
    a, b = (nn.Parameter(torch.ones(2)) for _ in range(2))
    groups = [{"params": [a], "part": "text"}, {"params": [b], "part": "connector"}]
    return UnreachedParts.of(torch.optim.AdamW(groups), steps, nn.ModuleDict()), a, b


@pytest.mark.parametrize("steps", [7, 1000])
@pytest.mark.parametrize("reached", [None, 1, 5])
def test_a_part_is_reported_if_no_gradient_was_other_than_zero(steps, reached):
    check, a, b = check_of(steps)
    found = {}
    for step in range(1, min(steps, FIRST_STEPS + 20) + 1):
        a.grad, b.grad = torch.ones(2), torch.zeros(2) if step != reached else torch.tensor([0.0, 1e-9])
        if lines := check.check(FULL, Position("s", step, step)):
            found[step] = lines
    last = min(steps, FIRST_STEPS)
    line = f"stages.s.train: connector is trainable, but {last} steps gave it no gradient"
    assert found == ({} if reached else {last: [line]})


def test_a_parameter_of_a_plugin_is_reported_by_its_name():
    head = nn.ModuleDict({"used": nn.Linear(2, 1, bias=False), "spare": nn.Linear(2, 1)})
    plugins = nn.ModuleDict({"rotation": head})
    groups = [{"params": list(plugins.parameters()), "part": "plugins"}]
    check = UnreachedParts.of(torch.optim.AdamW(groups), 2, plugins)
    for step in (1, 2):
        for parameter in plugins.parameters():
            parameter.grad = torch.zeros_like(parameter)
        head["used"].weight.grad = torch.ones(1, 2)
        lines = check.check(FULL, Position("s", step, step))
    assert lines == [
        f"stages.s.train: plugins.rotation.spare.{name} is trainable, but 2 steps gave it no gradient"
        for name in ("weight", "bias")
    ]


def test_an_empty_step_says_nothing_about_a_part():
    check, a, b = check_of(3)
    a.grad = b.grad = None
    assert check.check(EMPTY, Position("s", 1, 1)) == [] and set(check.left) == {"text", "connector"}


def test_a_connector_without_images_is_reported_before_and_after(tiny, tmp_path, capsys):
    turns = [{"from": "human", "value": "What is one?"}, {"from": "gpt", "value": "a number"}]
    (tmp_path / "t.json").write_text(json.dumps([{"id": str(i), "conversations": turns} for i in range(9)]))
    recipe = tiny(
        f"data.questions.records={tmp_path / 't.json'}", "stages.pretrain.length.steps=2",
        "stages.finetune.length.steps=3", text=PLAIN,
    )  # fmt: skip
    train(recipe, out=tmp_path / "run")
    shown = [line for line in capsys.readouterr().err.splitlines() if "connector is trainable" in line]
    assert shown == [
        "note: stages.finetune.train: connector is trainable, but no record of this stage has an image",
        "stages.finetune.train: connector is trainable, but 3 steps gave it no gradient",
    ]
