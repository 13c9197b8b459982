"""Drawn needs have the shape and range that the model gives; each need of the vocabulary can be drawn."""

from __future__ import annotations

import ast
import inspect
from typing import get_args

import pytest
import torch

from lmmkit import build
from lmmkit.api.needs import AttnMass, HiddenAt, HiddenMean, Need, Select
from lmmkit.objective import tap
from lmmkit.plan.dry_run.drawn import drawn, joined
from lmmkit.plan.prepare import prepare

RESPONSE, IMAGE = Select(supervised=True), Select(kind="image")
NEEDS = (HiddenAt(RESPONSE), HiddenAt(IMAGE, layer=1), HiddenMean(IMAGE), AttnMass(q=RESPONSE))


def test_each_need_can_be_drawn():
    """A need that is added to the vocabulary gets a case in `drawn` (and one in NEEDS, here)."""
    cases = {
        node.cls.id
        for node in ast.walk(ast.parse(inspect.getsource(drawn)))
        if isinstance(node, ast.MatchClass)
    }
    assert cases == {need.__name__ for need in get_args(Need)} == {type(need).__name__ for need in NEEDS}


@pytest.fixture(scope="module")
def model_s(request):
    """Returns (batch, dims, tensors of NEEDS as a model gives them)."""
    from dataclasses import replace

    scenes = request.getfixturevalue("scenes")
    from lmmkit.recipe import read_text
    from tests.conftest import PLAIN

    prepared = prepare(read_text(PLAIN, name="tiny.yaml", root=scenes))
    pipeline = prepared.pipeline("finetune")
    batch = replace(pipeline, packer=replace(pipeline.packer, needs=NEEDS)).step(0)[0]
    device = torch.device("cpu")
    objective = build.build_objective(prepared.recipe, {}, prepared.dims, device)
    with torch.no_grad():
        out = objective.lmm(batch, {})
    return batch, prepared.dims, {need: tap(need, batch, out) for need in NEEDS}


@pytest.mark.parametrize("need", NEEDS, ids=lambda need: type(need).__name__)
def test_a_drawn_need_looks_like_the_model_s(need, model_s):
    batch, dims, found = model_s
    made = drawn(need, batch, dims, torch.Generator().manual_seed(1))
    assert (made.shape, made.dtype) == (found[need].shape, found[need].dtype)
    assert made.std() > 0
    if isinstance(need, AttnMass):
        assert made.min() >= 0 and made.max() <= 1
    assert torch.equal(made, drawn(need, batch, dims, torch.Generator().manual_seed(1)))
    assert torch.equal(joined([made[:2], made[2:]]), made)
