"""Attention to chosen keys on the packed forest, against every view alone with whole maps: values and gradients."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from lmmkit import build
from lmmkit.api import AttnMass, AttnTo, HiddenAt, Select
from lmmkit.attention.eager import Eager
from lmmkit.attention.sdpa import Sdpa
from lmmkit.recipe import Speed
from tests import test_objective_needs
from tests.support import dense_views, paper_objective
from tests.support.fake_cuda import gradients, on_card
from tests.support.plain_twins import off, show
from tests.support.tiny_model import SPEC, pack
from tests.test_objective_needs import IMAGES, SAMPLES, SHUFFLED, WORDS, Reads, assert_twin, with_adapters

USER = Select(role="user", kind="text")
MAPS = (
    AttnTo(q=WORDS), AttnTo(q=WORDS, layers=(3,), heads=(1,)), AttnTo(q=WORDS, k=USER, layers=(0, 2)),
    AttnTo(q=IMAGES, k=IMAGES, heads=(3, 0)), AttnTo(q=Select(view="text_order", role="response"), k=WORDS),
    AttnTo(q=Select(view="image_order", token_name="drt"), k=SHUFFLED, layers=(1,)),
)  # fmt: skip
MASSES = (
    AttnMass(q=WORDS), AttnMass(q=WORDS, k=USER), AttnMass(q=WORDS, k=USER, layers=(1,)), AttnMass(q=IMAGES),
    AttnMass(q=Select(view="text_order", role="response"), k=WORDS),
)  # fmt: skip
EVERYTHING = (*MAPS, *MASSES, HiddenAt(WORDS), HiddenAt(IMAGES, layer=2))

SLOW = pytest.mark.slow


@pytest.fixture(autouse=True)
def deep(monkeypatch):
    """Makes the decoder four blocks deep, and adds the twins of attention."""
    monkeypatch.setattr(paper_objective, "TEXT", replace(paper_objective.TEXT, depth=4))
    twins = {AttnTo: dense_views.attn_to, AttnMass: dense_views.attn_mass}
    monkeypatch.setattr(test_objective_needs, "TWINS", test_objective_needs.TWINS | twins)


@pytest.mark.parametrize("backend", [Sdpa(), pytest.param(Eager(), marks=SLOW)], ids=lambda b: b.name)
@pytest.mark.parametrize("recompute", ["none", pytest.param("all", marks=SLOW)])
@pytest.mark.parametrize("share", [True, pytest.param(False, marks=SLOW)])
@pytest.mark.parametrize(("dtype", "limit"), [(torch.float64, 1e-12), (torch.float32, 5e-6)])
def test_weights_on_chosen_keys_equal_those_of_the_views_alone(backend, recompute, share, dtype, limit):
    made = paper_objective.objective(dtype=dtype, backend=backend)
    build.set_layers(made, Speed(recompute=recompute))
    needs = EVERYTHING if dtype == torch.float64 else (*MAPS, *MASSES)
    assert_twin(made, Reads(name="reads", read=needs), limit, share=share)


@pytest.mark.parametrize(
    "needs",
    [MAPS[:1], MAPS[1:2], MASSES[2:], (MAPS[2], MASSES[0])],
    ids=["map", "last layer", "masses", "map and mass"],
)
def test_rows_whose_output_nothing_reads_have_exact_weights_too(needs):
    assert_twin(paper_objective.objective(), Reads(name="reads", read=needs), 1e-12)


@pytest.mark.parametrize("recompute", ["none", pytest.param("all", marks=SLOW)])
def test_weights_under_low_rank_updates_equal_those_of_the_views_alone(recompute):
    made = with_adapters(paper_objective.objective())
    build.set_layers(made, Speed(recompute=recompute))
    assert_twin(made, Reads(name="reads", read=EVERYTHING), 1e-12)


def test_the_keys_are_named_in_order_and_only_where_they_are_seen():
    packer = paper_objective.packer(terms=(Reads(name="reads", read=MAPS),))
    samples = paper_objective.sized(SAMPLES, packer)
    batch, paths = pack(packer, samples)
    members = [member for sample in samples for member in sample.members]
    for need in MAPS:
        pick = batch.gathers[need]
        assert pick.key_QK is not None and len(pick) == len(pick.key_QK) > 0
        for row, view, keys in zip(
            pick.row_Q.tolist(), pick.view_Q.tolist(), pick.key_QK.tolist(), strict=True
        ):
            path = paths[view].tolist()
            want = [path[k] for k in need.k.positions(members[view].layout) if k <= path.index(row)]
            assert want and keys == want + [-1] * (len(keys) - len(want))
    assert batch.gathers[MAPS[0]].key_QK.shape[1] == SPEC.tokens


def test_a_map_sums_to_the_mass_and_a_batch_without_keys_has_an_empty_one():
    term = Reads(name="reads", read=(MAPS[0], MASSES[0]))
    made, (batch, _) = paper_objective.objective(), paper_objective.packed(SAMPLES, terms=(term,))
    made.terms = (term,)
    ctx = made(batch).ctxs["reads"]
    show("map_sums", off(ctx[MAPS[0]].sum(-1), ctx[MASSES[0]]))
    assert off(ctx[MAPS[0]].sum(-1), ctx[MASSES[0]]) < 1e-12
    batch, _ = paper_objective.packed(paper_objective.CHATS[2:], terms=(term,))
    assert made(batch).ctxs["reads"][MAPS[0]].shape == (0, 0)


def test_without_such_a_need_nothing_of_the_batch_or_the_mass_changes():
    made, results = paper_objective.objective(dtype=torch.float32), []
    reads = Reads(name="reads", read=(MAPS[1], MAPS[2], MASSES[2]))
    for terms in (paper_objective.TERMS, (*paper_objective.TERMS, reads)):
        batch, _ = paper_objective.packed(SAMPLES, terms=terms)
        made.terms = terms
        outcome = made(batch)
        results.append((batch, outcome.ctxs["guided_loss"][paper_objective.GUIDED.needs[0]]))
    (plain, mass), (mapped, same) = results
    assert not plain.attention.maps and len(mapped.attention.maps) == 3
    assert torch.equal(mass, same) and torch.equal(plain.attention.row_R, mapped.attention.row_R)
    fns = made.lmm.attention_fns(mapped.attention, mapped.last, torch.device("cpu"))
    assert [len(each.maps) for each in fns] == [1, 1, 1, 1], "each layer computes what is asked of it"


def test_in_bfloat16_weights_are_as_exact_as_the_queries_and_keys():
    made, term = paper_objective.objective(dtype=torch.float32), Reads(name="reads", read=MAPS[:3])
    batch, _ = paper_objective.packed(SAMPLES, terms=(term,))
    made.terms, found = (term,), []
    for compute in (torch.bfloat16, torch.float32):
        made.compute = compute
        ctx = made(batch).ctxs["reads"]
        found.append([ctx[need] for need in MAPS[:3]])
    assert all(x.dtype == torch.float32 for x in found[0])
    worst = max(off(a, b) for a, b in zip(*found, strict=True))
    show("bfloat16", worst)
    assert worst < 0.05


@pytest.mark.parametrize("backend", [Sdpa(), Eager()], ids=lambda b: b.name)
def test_weights_on_chosen_keys_do_not_wait_for_the_device(backend):
    term = Reads(name="reads", read=EVERYTHING)
    made = paper_objective.objective(dtype=torch.float32, backend=backend)
    batch, _ = paper_objective.packed(SAMPLES, terms=(term,))
    made.terms, made.compute = (term,), torch.bfloat16
    with on_card(made) as rules:
        outcome = made(batch.to("cuda"))
        assert all(outcome.ctxs["reads"][need].dtype == torch.float32 for need in (*MAPS, *MASSES))
        loss = outcome.sums["reads"] + outcome.sums["next_token"]
        found = gradients(loss, list(made.parameters()), torch.ones_like(loss))
    assert rules.waited == [] and any(g is not None for g in found)
