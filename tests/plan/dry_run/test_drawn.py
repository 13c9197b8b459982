"""Drawn needs have the shape and range that the model gives; each need of the vocabulary can be drawn."""

from __future__ import annotations

import ast
import inspect
from dataclasses import dataclass, replace
from typing import get_args

import pytest
import torch

from lmmkit import build
from lmmkit.api import Loss
from lmmkit.api.needs import (
    AttnMass,
    AttnTo,
    HiddenAt,
    HiddenMean,
    LogitsAt,
    LogProb,
    LogSumExp,
    Need,
    Select,
    TeacherAt,
    VisionAt,
)
from lmmkit.model.teacher import Teacher
from lmmkit.plan.dry_run.drawn import LOGITS, concatenated, drawn
from lmmkit.plan.prepare import prepare
from lmmkit.recipe import read_text
from tests.conftest import PLAIN

RESPONSE, IMAGE = Select(supervised=True), Select(kind="image")
NEEDS = (
    HiddenAt(RESPONSE), HiddenAt(IMAGE, layer=1), HiddenMean(IMAGE), AttnMass(q=RESPONSE),
    AttnTo(q=RESPONSE),
    VisionAt(IMAGE), VisionAt(IMAGE, stage="projected"), LogProb(RESPONSE), LogSumExp(RESPONSE),
    LogitsAt(RESPONSE), TeacherAt("own", IMAGE),
)  # fmt: skip


def test_each_need_can_be_drawn():
    """Guards: a need that is added to the vocabulary gets a case in `drawn` (and one in NEEDS, here)."""
    cases = {
        node.cls.id
        for node in ast.walk(ast.parse(inspect.getsource(drawn)))
        if isinstance(node, ast.MatchClass)
    }
    assert cases == {need.__name__ for need in get_args(Need)} == {type(need).__name__ for need in NEEDS}


@dataclass(frozen=True, kw_only=True)
class Everything(Loss):
    """Reads every need, and has no value."""

    @property
    def needs(self):
        return NEEDS

    def value(self, ctx):
        return sum(ctx[need].sum() * 0 for need in NEEDS)


@pytest.fixture(scope="module")
def model_s(scenes):
    """Returns (batch, dims, tensors of NEEDS as a model gives them)."""
    prepared = prepare(read_text(PLAIN, name="tiny.yaml", root=scenes))
    pipeline, term = prepared.pipeline("finetune"), Everything(name="everything")
    own = {"own": prepared.dims.image}
    packer = replace(pipeline.packer, needs=NEEDS, terms=(term,), teachers=own)
    batch = replace(pipeline, packer=packer).step(0)[0]
    objective = build.build_objective(prepared.recipe, {}, prepared.dims, torch.device("cpu"))
    objective.terms = (term,)
    objective.teachers = {"own": Teacher(objective.lmm.vision, prepared.dims.image, torch.float32)}
    with torch.no_grad():
        return batch, replace(prepared.dims, teachers=own), objective(batch).ctxs["everything"].taps


@pytest.mark.parametrize("need", NEEDS, ids=lambda need: type(need).__name__)
def test_a_drawn_need_looks_like_the_model_s(need, model_s):
    batch, dims, found = model_s
    made = drawn(need, batch, dims, torch.Generator().manual_seed(1))
    shape = (
        found[need].shape if not isinstance(need, LogitsAt) else (len(found[need]), min(dims.vocab, LOGITS))
    )
    assert (made.shape, made.dtype) == (shape, found[need].dtype)
    assert made.std() > 0
    if isinstance(need, AttnMass):
        assert made.min() >= 0 and made.max() <= 1
    if isinstance(need, LogProb):
        assert made.max() <= 0
    assert torch.equal(made, drawn(need, batch, dims, torch.Generator().manual_seed(1)))
    assert torch.equal(concatenated([made[:2], made[2:]]), made)
