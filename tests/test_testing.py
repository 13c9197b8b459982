"""`lmmkit.testing`: a component without a recipe, on drawn scenes."""

from __future__ import annotations

import re
import runpy
import sys
import types
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from lmmkit_directed_token import DirectedToken
from lmmkit_guided_loss import GuidedLoss
from lmmkit_shuffle.image_order import ImageOrder
from lmmkit_shuffle.text_order import TextOrder
from lmmkit_zoo.distill import Distill
from lmmkit_zoo.dpo import Dpo
from lmmkit_zoo.keep_tokens import KeepTokens
from torch import Tensor

from lmmkit.api import AttnTo, Ctx, HiddenAt, Loss, RowLoss, Select, VisionAt
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


@dataclass(frozen=True, kw_only=True)
class Deaf(RowLoss):
    """Names a teacher, and takes no logits of it."""

    teacher: str

    def rows(self, logits_CV: Tensor, target_C: Tensor) -> Tensor:
        return logits_CV.logsumexp(-1)


@dataclass(frozen=True, kw_only=True)
class Marked(RowLoss):
    """Gives each sample a token of the vocabulary, with a wrong number of values if `rows_more` is not 0."""

    rows_more: int = 0

    def labels(self, sample, dims):
        return {"token": [dims.vocab - 1] * (3 + self.rows_more) if self.rows_more else dims.vocab - 1}

    def rows(self, logits_CV: Tensor, target_C: Tensor, token: Tensor) -> Tensor:
        return -logits_CV.log_softmax(-1).gather(1, token[:, None])[:, 0]


def test_losses_of_rows_get_the_logits_of_a_drawn_teacher_and_labels_up_to_the_last_token(monkeypatch):
    monkeypatch.setattr("lmmkit.plan.dry_run.term_subject.LOGITS", 20)  # fewer than there are tokens
    for divergence in ("forward", "reverse", "js"):
        assert dry_run(Distill(name="distill", teacher="any", divergence=divergence)) == []
    assert len(fake_ctx(term := Distill(name="distill", teacher="any"))[term.needs[0]]) > 0
    (problem,) = dry_run(Deaf(name="deaf", teacher="any"))
    assert problem.code == "plugin/raised" and problem.where.startswith("deaf.rows, test_testing.py:")
    assert dry_run(Marked(name="marked")) == []
    (problem,) = dry_run(Marked(name="marked", rows_more=90))
    assert problem.code == "plugin/label" and "93 values, and" in problem.got


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
        def reduce(self, features_INE, connect, module):
            return super().reduce(features_INE, connect, module)[:, 1:]

    (problem,) = dry_run(Fewer(name="fewer"))
    assert problem.code == "plugin/returned" and problem.where.startswith("fewer.reduce, test_testing.py:")


@dataclass(frozen=True, kw_only=True)
class ToHint(Loss):
    """Raises the attention of answers to a learned token of another plugin."""

    @property
    def needs(self) -> tuple[AttnTo]:
        return (AttnTo(q=Select(supervised=True), k=Select(token_name="hint")),)

    def value(self, ctx: Ctx) -> Tensor:
        return (1 - ctx[self.needs[0]].sum(-1)).sum()


def test_a_term_that_reads_attention_to_a_token_gets_one_that_answers_attend_to():
    assert dry_run(ToHint(name="to_hint")) == []
    ctx = fake_ctx(term := ToHint(name="to_hint"))
    assert (ctx.batch.gathers[term.needs[0]].key_QK >= 0).any()


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


PAGE = (Path(__file__).parent.parent / "docs" / "plugins.md").read_text(encoding="utf-8")
IDEAS = re.findall(
    r"^### (.*?)\n.*?^```python\n(.*?)^```",
    PAGE.partition("\n## Six ideas\n")[2].partition("\n## ")[0],
    re.MULTILINE | re.DOTALL,
)


def test_docs_plugins_has_an_idea_of_six_kinds():
    starts = ("A loss: ", "A task: ", "A token: ", "A preference pair: ", "A teacher: ", "A reducer: ")
    assert len(IDEAS) == 6 and all(t.startswith(s) for (t, _), s in zip(IDEAS, starts, strict=True))


@pytest.mark.parametrize("code", [code for _, code in IDEAS], ids=[title for title, _ in IDEAS])
def test_an_idea_of_docs_plugins_has_no_problem(code, tmp_path, monkeypatch):
    (tmp_path / "idea_of_the_docs.py").write_text(code)
    monkeypatch.syspath_prepend(tmp_path)
    try:
        offered = import_module("idea_of_the_docs").lmmkit_components()
        assert dry_run(*(cls(name=name) for name, cls in offered.items())) == []
    finally:
        sys.modules.pop("idea_of_the_docs", None)


def test_the_reducer_and_the_box_of_docs_plugins_count_patches_as_images_do(tmp_path):
    loss, *_, reducer = (code for _, code in IDEAS)
    found = {}
    for name, code in (("box", loss), ("pool", reducer)):
        (tmp_path / f"{name}.py").write_text(code)
        found |= runpy.run_path(str(tmp_path / f"{name}.py"))["lmmkit_components"]()
    pool, seen = found["pool"](name="pool", side=3), torch.randn(2, 36, 5)
    want = torch.nn.functional.avg_pool2d(seen.movedim(-1, 1).view(2, 5, 6, 6), 3).flatten(2).movedim(1, -1)
    assert torch.allclose(pool.reduce(seen, lambda x: x, None), want, atol=1e-6)
    dims = SimpleNamespace(image=SimpleNamespace(grid=(6, 6), row_grid=(6, 6), tokens=36))
    assert pool.patches(dims)[1] == [3, 4, 5, 9, 10, 11, 15, 16, 17] and pool.tokens(dims) == 4
    assert pool.check(dims) == "" != found["pool"](name="pool", side=4).check(dims)
    sample = SimpleNamespace(meta={"box": (0.5, 0.0, 1.0, 0.3)})
    inside = found["inside_box"](name="box").labels(sample, dims)["inside"].reshape(6, 6)
    assert inside[:2, 3:].all() and inside.sum() == 6


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


def test_a_class_that_another_process_does_not_have_is_named(monkeypatch):
    """Takes a class of a module that exists in this process alone, as `__main__` of a script."""
    module = types.ModuleType("only_here")
    monkeypatch.setitem(sys.modules, "only_here", module)

    @dataclass(frozen=True, kw_only=True)
    class Order(ImageOrder):
        pass

    Order.__module__, Order.__qualname__ = "only_here", "Order"
    module.Order = Order  # type: ignore[attr-defined]
    (problem,) = dry_run(Order(name="order", grid=3, permutations=6), second_process=True)
    assert problem.code == "plugin/pickle" and "only_here" in problem.got
