"""What a plugin costs: what is left out with it, rows, saved bytes and time."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from lmmkit.plan.prepare import prepare
from lmmkit.plugin_costs import Copy, SavedBytes, plugin_costs, quartiles, readers, without
from tests.conftest import DIRECT, MODEL, PLAIN
from tests.training.test_reference import TEXT, WHOLE

CPU = torch.device("cpu")
SLEEPY = """
import time
from dataclasses import dataclass
from lmmkit.api import HiddenAt, Loss, Select, hookimpl

@dataclass(frozen=True, kw_only=True)
class Sleepy(Loss):
    seconds: float = 0.0

    @property
    def needs(self):
        return (HiddenAt(Select(supervised=True)),)

    def value(self, ctx):
        time.sleep(self.seconds)
        return ctx[self.needs[0]].square().sum()

@hookimpl
def lmmkit_components():
    return {"sleepy": Sleepy}
"""
ONLY = """
stages:
  only:
    data:   {questions: 1.0}
    batch:  {samples: 3}
    length: {steps: 2}
    train:  {connector: {}, text: {}, plugins: {}}
    optim:  {lr: 1.0e-3}
    losses: {next_token: 1.0, slow: 1.0, quick: 1.0}
"""


@pytest.mark.parametrize(
    ("name", "losses", "gone"),
    [
        ("directed_token", "{next_token: 1.0, text_order: 1.0, guided_loss: 0.5}", {"image_order"}),
        ("image_order", "{next_token: 1.0, text_order: 1.0, guided_loss: 0.5}", {"directed_token"}),
        ("text_order", "{next_token: 1.0, image_order: 1.0, text_order: 0, guided_loss: 0.5}", set()),
        ("guided_loss", "{next_token: 1.0, image_order: 1.0, text_order: 1.0}", set()),
    ],
)
def test_a_stage_without_a_plugin_is_that_of_a_recipe_without_its_terms(name, losses, gone, tiny):
    whole = prepare(tiny())
    found = without(whole, "pretrain", name).plans["pretrain"]
    written = prepare(tiny(f"stages.pretrain.losses={losses}")).plans["pretrain"]
    assert found.digest == written.digest and found.active == written.active
    assert whole.plans["pretrain"].active - found.active == {name} | gone


def test_terms_that_read_the_views_of_a_term_are_left_out_with_it(tiny, tmp_path):
    (tmp_path / "reads.py").write_text(
        SLEEPY.replace("Select(supervised=True)", "Select(view='text_order', supervised=True)")
    )
    text = DIRECT.replace(
        "  guided_loss:    {}", f"  guided_loss:    {{}}\n  reads: {{use: '{tmp_path}/reads.py:sleepy'}}"
    ).replace("text_order: 1.0, ", "text_order: 1.0, reads: 1.0, ")
    prepared = prepare(tiny(text=text), trust_files=True)
    assert readers(prepared, "pretrain", "text_order") == {"text_order", "reads"}
    assert readers(prepared, "pretrain", "reads") == {"reads"}


def test_weights_of_rows_are_left_out_with_the_views_that_they_read(tiny):
    zoo = Path(__file__).resolve().parents[1] / "plugins" / "lmmkit_zoo"
    files = {"focal": "focal", "blind": "cal", "cal": "cal"}
    uses = "".join(f"  {name}: {{use: '{zoo / file}.py'}}\n" for name, file in files.items())
    text = PLAIN.replace("stages:", f"plugins:\n{uses}stages:", 1)
    text = text.replace("{next_token: 1.0}", "{next_token: {weight: 1.0, by: [focal, cal]}}")
    prepared = prepare(tiny(text=text), trust_files=True)
    for name, left in (("focal", {"blind", "cal"}), ("cal", {"focal"}), ("blind", {"focal"})):
        plan = without(prepared, "finetune", name).plans["finetune"]
        assert plan.active == left and len(plan.needs) == (2 if "cal" in left else 1), name
    both = plugin_costs(prepared, "finetune", 1, torch.device("cpu"))
    assert {cost.name: cost.off_with for cost in both.plugins} == {
        "blind": ("cal",), "cal": ("blind",), "focal": (),
    }  # fmt: skip
    assert {cost.name: cost.rows > 0 for cost in both.plugins} == {"blind": True, "cal": True, "focal": False}


def test_the_rows_and_parameters_are_those_of_the_plans(tiny):
    recipe = tiny("stages.pretrain.length.steps=2")
    found = plugin_costs(prepare(recipe), "pretrain", 1, CPU)
    less = prepare(tiny("stages.pretrain.length.steps=2", "stages.pretrain.losses.text_order=0"))

    def rows(prepared):
        return sum(len(b) for i in range(2) for b in prepared.pipeline("pretrain").step(i)) / 2

    costs = {each.name: each for each in found.plugins}
    assert found.rows == rows(prepare(recipe)) and costs["text_order"].rows == found.rows - rows(less) > 0
    assert costs["guided_loss"].rows == 0 and costs["guided_loss"].parameters == 0
    assert costs["directed_token"].parameters == 32  # one embedding of the model's width
    assert costs["image_order"].off_with == ("directed_token",) and costs["image_order"].bytes > 0
    assert all(each.low <= each.ratio <= each.high for each in found.plugins)


def test_a_slow_term_has_the_larger_ratio(tiny, tmp_path):
    (tmp_path / "sleepy.py").write_text(SLEEPY)
    use = f"use: '{tmp_path}/sleepy.py:sleepy'"
    plugins = f"plugins:\n  slow: {{{use}, seconds: 0.2}}\n  quick: {{{use}}}\n"
    found = plugin_costs(prepare(tiny(text=MODEL + plugins + ONLY), trust_files=True), "only", 3, CPU)
    quick, slow = found.plugins
    assert found.seconds > 0.2 and slow.ratio > 1.5 > quick.ratio
    assert slow.rows == quick.rows == 0


def test_the_same_plugin_saves_the_same_bytes_each_time(tiny):
    prepared = prepare(tiny("stages.pretrain.length.steps=1"))
    first, second = (Copy(prepared, "pretrain", CPU).measured_bytes() for _ in range(2))
    assert first == second > 0


def test_saved_bytes_count_each_storage_once_and_end_with_the_graph():
    weight, x = torch.ones(10, requires_grad=True), torch.ones(10)
    saved = SavedBytes([weight])
    with torch.autograd.graph.saved_tensors_hooks(saved.pack, lambda kept: kept.tensor):
        once = x * weight  # saves x: 40 bytes, and the weight
        y = once.exp()  # saves its output: 40 bytes
        z = y * once  # saves the same output, and its other factor: 40 bytes
    assert saved.now == saved.most == 120
    z.sum().backward()
    assert torch.equal(weight.grad, (once.exp() * (1 + once)).detach())
    assert (saved.now, saved.most) == (0, 120)


def test_a_term_with_a_reference_is_left_out_together_with_the_reference(tiny):
    prepared = prepare(tiny(text=TEXT.replace("TRAIN", WHOLE)), trust_files=True)
    assert without(prepared, "prefer", "dpo").plans["prefer"].reference == ""
    found = plugin_costs(prepared, "prefer", 1, CPU)
    (dpo,) = found.plugins
    assert dpo.name == "dpo" and dpo.rows > 0 and dpo.bytes > 0


@pytest.mark.parametrize("context", [256, 128])
def test_an_image_reducer_is_left_out_if_the_context_has_room(context, tiny):
    text = MODEL.replace("{kind: mlp2x_gelu}", "{kind: mlp2x_gelu, reduce: keep_tokens}") + ONLY.replace(
        ", slow: 1.0, quick: 1.0", ""
    )
    sets = ["model.vision.image_size=80"] if context == 128 else []
    text += "plugins:\n  keep_tokens: {count: 1}\n"
    prepared = prepare(tiny(f"model.text.context={context}", *sets, text=text))
    (found,) = plugin_costs(prepared, "only", 1, CPU).plugins
    if context == 256:
        assert found.rows < 0 and found.why_not == ""
    else:
        assert found.ratio is None and "data/too-long" in found.why_not


def test_quartiles_of_few_and_many_numbers():
    assert quartiles([2.0]) == (2.0, 2.0, 2.0)
    assert quartiles([5.0, 1.0, 3.0, 2.0, 4.0]) == (2.0, 3.0, 4.0)
