"""The reference's log-probabilities against those of a dense copy, after the trained model has moved."""

from __future__ import annotations

import copy
from dataclasses import replace

import pytest
import torch
from torch import nn

from lmmkit.api import AttnTo, Select
from lmmkit.attention.schedule import AttentionSpec
from lmmkit.model import cross_entropy
from lmmkit.model.reference import Reference
from lmmkit.model.transforms import lora
from lmmkit.model.vlm import LMM
from lmmkit.objective import Objective
from tests.support import dense_views, paper_objective, preference
from tests.support.plain_twins import off
from tests.support.preference import SAMPLES, Prefer
from tests.support.tiny_model import pack

TASK = Prefer(name="prefer", model="reference")
REFERENCES = [need for need in TASK.needs[:-1] if need.model == "reference"]


def moved(parameters) -> None:
    with torch.no_grad():
        for i, p in enumerate(parameters):
            p.add_(torch.randn(p.shape, generator=torch.Generator().manual_seed(i), dtype=p.dtype) * 0.05)


def given(low_rank: bool) -> tuple[Objective, Objective]:
    """Returns an objective that has moved since its start, with a reference, and a copy of the start."""
    made = paper_objective.objective()
    start, lmm = copy.deepcopy(made), made.lmm
    own = {"vision": lmm.vision, "connector": lmm.connector} | ({} if low_rank else {"text": lmm.decoder})
    own = nn.ModuleDict(copy.deepcopy(own))
    reference = LMM(own["vision"], own["connector"], lmm.decoder if low_rank else own["text"], lmm.backend)  # type: ignore[arg-type]
    made.references = (Reference(own, reference, {}),)
    moved([*lmm.vision.parameters(), *lmm.connector.parameters()])
    if low_rank:
        adapters = lora.attach(lmm.decoder, r=3, alpha=6.0, dropout=0.4, targets=lora.TARGETS, seed=0)
        made.double()
        moved(adapters)
    else:
        moved(lmm.decoder.parameters())
    made.terms = (TASK,)
    return made.train(), start


@pytest.mark.parametrize("low_rank", [False, True])
def test_a_reference_is_the_start_also_after_the_model_has_moved(low_rank):
    made, start = given(low_rank)
    packer = preference.packer(TASK)
    samples = preference.sized(SAMPLES, packer, TASK)
    batch, _ = pack(packer, samples)
    assert batch.head is not None and batch.reference is not None
    assert set(batch.reference.item_Q) == set(REFERENCES) and not set(batch.head.item_Q) & set(REFERENCES)
    assert torch.equal(batch.reference.row_R, batch.head.row_R), "products of equal shapes"
    assert len(batch.reference.target_P) < len(batch.head.target_P), "no targets of the next-token loss"
    state = torch.get_rng_state()
    outcome = made(batch)
    ctx = outcome.ctxs["prefer"]
    views = [dense_views.dense(start, member) for sample in samples for member in sample.members]
    for need in REFERENCES:
        want = dense_views.log_prob(views, need)
        assert off(ctx[need], want) < 1e-12 and not ctx[need].requires_grad
        policy = ctx[TASK.read(need.at.view_role)]
        assert policy.requires_grad and off(policy, want) > 1e-4
    outcome.sums["prefer"].backward()
    assert all(p.grad is None for p in made.references[0].parameters())
    torch.set_rng_state(state)
    made.references = ()
    plain, _ = pack(preference.packer(), preference.sized(SAMPLES, preference.packer()))
    made.terms = (preference.TASK,)
    again = made(plain).ctxs["prefer"]
    for role in TASK.roles:
        need = TASK.read(role)
        assert torch.equal(again[need], ctx[need]), (
            "the reference draws no random numbers and leaves updates on"
        )


def test_updates_are_on_again_also_after_an_error():
    made, _ = given(True)
    with pytest.raises(RuntimeError), lora.updates_off(made.lmm.decoder):
        raise RuntimeError
    packer = preference.packer(TASK)
    batch, _ = pack(packer, preference.sized(SAMPLES, packer, TASK))
    ctx = made.eval()(batch).ctxs["prefer"]
    assert off(ctx[TASK.read("chosen")], ctx[TASK.read("chosen", "reference")]) > 1e-4


@pytest.mark.parametrize("low_rank", [False, True])
@pytest.mark.parametrize("share", [False, True])
def test_a_model_that_has_not_moved_has_the_bits_of_its_reference(low_rank, share, monkeypatch):
    monkeypatch.setattr(cross_entropy, "chunk_rows", lambda vocab: 7)
    made = paper_objective.objective(dtype=torch.float32)
    lmm = made.lmm
    own = nn.ModuleDict({"connector": copy.deepcopy(lmm.connector)})
    if low_rank:
        lora.attach(lmm.decoder, r=3, alpha=6.0, dropout=0.4, targets=lora.TARGETS, seed=0)
    else:
        own["text"] = copy.deepcopy(lmm.decoder)
    decoder = lmm.decoder if low_rank else own["text"]
    made.references = (Reference(own, LMM(lmm.vision, own["connector"], decoder, lmm.backend), {}),)  # type: ignore[arg-type]
    made.terms = (TASK,)
    packer = preference.packer(TASK, share=share)
    batch, _ = pack(packer, preference.sized(SAMPLES, packer, TASK))
    ctx = made.train()(batch).ctxs["prefer"]
    for need in REFERENCES:
        assert torch.equal(ctx[need], ctx[TASK.read(need.at.view_role)].detach())


def test_the_reference_computes_no_maps_of_attention():
    made, _ = given(False)
    maps = AttnTo(q=Select(role="response"))
    plain = preference.packer(TASK)
    more = replace(plain, needs=(*plain.needs, maps))
    batches = [pack(each, preference.sized(SAMPLES, each, TASK))[0] for each in (plain, more)]
    seen: list[AttentionSpec] = []
    (reference,) = made.references
    backend, lmm = made.lmm.backend, reference._used[0]

    class Noting:
        def prepare(self, spec, device):
            seen.append(spec)
            return backend.prepare(spec, device)

    lmm.backend = Noting()
    without, with_maps = (reference(batch, None) for batch in batches)
    assert all(torch.equal(without[need], with_maps[need]) for need in REFERENCES)
    assert batches[1].attention.maps and len(seen) == 4 and not any(spec.maps for spec in seen)
    assert seen[2].calls is batches[1].attention.calls, "the calls that packing has made"
