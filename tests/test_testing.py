"""`lmmkit.testing`: a component without a recipe, on drawn scenes."""

from __future__ import annotations

import re
import runpy
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from lmmkit_directed_token import DirectedToken
from lmmkit_guided_loss import GuidedLoss
from lmmkit_shuffle.image_order import ImageOrder
from lmmkit_shuffle.text_order import TextOrder
from lmmkit_zoo.dpo import Dpo
from lmmkit_zoo.keep_tokens import KeepTokens
from torch import Tensor

from lmmkit.api import Ctx, HiddenAt, Loss, Select, VisionAt
from lmmkit.testing import dry_run, fake_ctx


@dataclass(frozen=True, kw_only=True)
class Short(Loss):
    """Keeps the states of responses short: `mean` makes the mistake of returning a mean."""

    mean: bool = False

    @property
    def needs(self) -> tuple[HiddenAt]:
        return (HiddenAt(Select(supervised=True)),)

    def value(self, ctx: Ctx) -> Tensor:
        squares = ctx[self.needs[0]].float().square().mean(-1)
        return squares.mean() if self.mean else squares.sum()


def test_a_sound_component_has_no_problem_and_a_mistake_has_one():
    assert dry_run(Short(name="short")) == []
    (problem,) = dry_run(Short(name="short", mean=True))
    assert problem.code == "plugin/not-additive" and problem.where.startswith("short.value, test_testing.py:")


@pytest.mark.parametrize(
    "component",
    [
        ImageOrder(name="order", grid=3, permutations=6), TextOrder(name="text"), GuidedLoss(name="guided"),
        DirectedToken(name="token"), DirectedToken(name="token", place="before_response"),
    ],
    ids=lambda component: f"{type(component).__name__}",
)  # fmt: skip
def test_a_paper_s_plugin_alone_has_no_problem(component):
    """Gives a token that nothing reads, or nothing provides, a simple reader or provider."""
    assert dry_run(component) == []


def test_an_image_reducer_is_used_and_its_mistake_reported():
    assert dry_run(KeepTokens(name="keep")) == []

    @dataclass(frozen=True, kw_only=True)
    class Fewer(KeepTokens):
        def reduce(self, seen_INE, connect, module):
            return super().reduce(seen_INE, connect, module)[:, 1:]

    (problem,) = dry_run(Fewer(name="fewer"))
    assert problem.code == "plugin/returned" and problem.where.startswith("fewer.reduce, test_testing.py:")


def test_a_term_that_reads_a_reference_has_no_problem():
    assert dry_run(Dpo(name="dpo")) == []


@pytest.mark.parametrize("stage", ["encoder", "projected"])
def test_a_term_that_trains_the_vision_features_has_no_problem(stage):
    @dataclass(frozen=True, kw_only=True)
    class Small(Short):
        @property
        def needs(self):
            return (VisionAt(Select(kind="image"), stage=stage, detach=False),)

    assert dry_run(Small(name="small")) == []


def python_block(file: str, word: str) -> str:
    """Returns the Python block of a document that contains `word`."""
    text = (Path(__file__).parent.parent / file).read_text(encoding="utf-8")
    (found,) = (b for b in re.findall(r"^```python\n(.*?)^```", text, re.MULTILINE | re.DOTALL) if word in b)
    return found


def test_the_test_in_the_docs_passes_on_the_plugin_in_readme(tmp_path, monkeypatch):
    (tmp_path / "my_loss.py").write_text(python_block("README.md", "class LookEnough"))
    (tmp_path / "test_it.py").write_text(python_block("docs/plugins.md", "fake_ctx"))
    monkeypatch.syspath_prepend(tmp_path)
    found = runpy.run_path(str(tmp_path / "test_it.py"))
    passed = [call() for name, call in found.items() if name.startswith("test_")]
    assert passed == [None, None]
    sys.modules.pop("my_loss")


def test_views_are_made_in_a_second_process_on_request():
    assert dry_run(ImageOrder(name="order", grid=3, permutations=6), second_process=True) == []


def test_a_class_that_no_other_process_can_import_is_reported():
    @dataclass(frozen=True, kw_only=True)
    class Inner(TextOrder):
        pass

    (problem,) = dry_run(Inner(name="inner"), second_process=True)
    assert problem.code == "plugin/pickle" and "Inner" in problem.got


def test_a_context_has_a_batch_a_module_and_drawn_needs():
    task = ImageOrder(name="order", grid=3, permutations=6)
    ctx = fake_ctx(task, DirectedToken(name="token"), samples=3)
    assert ctx[task.needs[0]].shape == (3, 48) and ctx.label("permutation").shape == (3,)
    value = task.value(ctx)
    value.backward()
    assert ctx.module is not None and all(p.grad is not None for p in ctx.module.parameters())
    assert task.count(ctx.batch) == 3


def test_a_context_takes_the_tensors_that_a_test_gives():
    loss = GuidedLoss(name="guided")
    n = len(fake_ctx(loss, samples=2)[loss.needs[0]])
    ctx = fake_ctx(loss, samples=2, taps={loss.needs[0]: torch.full((n,), 0.25)})
    assert float(loss.value(ctx)) == pytest.approx(0.75 * n)
