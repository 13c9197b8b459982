"""Low-rank updates: nothing at first, a plain twin's sum afterwards, gone once merged."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F

from lmmkit.attention.eager import Eager
from lmmkit.attention.schedule import AttentionSpec
from lmmkit.attention.sdpa import Sdpa
from lmmkit.model.decoder import Decoder, DecoderShape
from lmmkit.model.init import init
from lmmkit.model.transforms import lora
from tests.support import paper_objective
from tests.support.random_forests import roots

SHAPE = DecoderShape(
    vocab=31, width=24, depth=2, heads=4, kv_heads=2, head_size=6, mlp=20, context=16, qkv_bias=True
)
OPTIONS = {"r": 3, "alpha": 6.0, "dropout": 0.0, "targets": lora.TARGETS, "seed": 0}


@pytest.fixture
def decoder():
    made = Decoder(SHAPE)
    init(made, 0)
    return made.double()


def states(decoder):
    forest = roots([7, 5])
    spec = AttentionSpec(forest, torch.zeros(12, dtype=torch.bool), torch.empty(0, dtype=torch.int64))
    attention_fn = Eager().prepare(spec, torch.device("cpu"))
    x_TD = torch.randn(12, 24, generator=torch.Generator().manual_seed(1)).double()
    return decoder(x_TD, forest.pos_T, [attention_fn] * 2)[0]


def attached(decoder, **changes):
    parameters = lora.attach(decoder, **(OPTIONS | changes))
    decoder.double()
    with torch.no_grad():
        for i, p in enumerate(parameters):
            p.copy_(torch.randn(p.shape, generator=torch.Generator().manual_seed(i)) * 0.3)
    return parameters


def test_nothing_changes_at_first(decoder):
    before, names = states(decoder), set(decoder.state_dict())
    parameters = lora.attach(decoder, **OPTIONS)
    decoder.double()
    assert torch.allclose(states(decoder), before, rtol=0, atol=1e-12) and len(parameters) == 2 * 2 * 7
    assert names < set(decoder.state_dict())


def test_the_sum_is_that_of_a_plain_twin(decoder):
    twin = copy.deepcopy(decoder)
    attached(decoder)
    adapters = dict(decoder.named_parameters())
    with torch.no_grad():
        for n in range(2):
            for path, rows in (("attention.qkv", {"q": (0, 24), "k": (24, 36), "v": (36, 48)}),
                               ("attention.out", {"out": (0, 24)}), ("mlp.gate_up", {"gate": (0, 20), "up": (20, 40)}),
                               ("mlp.down", {"down": (0, 24)})):  # fmt: skip
                weight = twin.get_parameter(f"blocks.{n}.{path}.weight")
                for part, (a, b) in rows.items():
                    at = f"blocks.{n}.{path}.lora.{part}"
                    weight[a:b] += 6.0 / 3 * adapters[f"{at}.b"] @ adapters[f"{at}.a"]
    assert torch.allclose(states(decoder), states(twin), rtol=0, atol=1e-12)


def test_merged_says_the_same_and_leaves_no_trace(decoder):
    names = set(decoder.state_dict())
    attached(decoder)
    before = states(decoder)
    lora.merge(decoder)
    assert torch.allclose(states(decoder), before, rtol=0, atol=1e-12)
    assert set(decoder.state_dict()) == names
    lora.merge(decoder)
    lora.attach(decoder, **OPTIONS)  # and can be put on again


def test_targets_choose(decoder):
    parameters = lora.attach(decoder, **(OPTIONS | {"targets": ["q", "down"]}))
    names = {n for n, _ in decoder.named_parameters() if "lora" in n}
    assert len(parameters) == 2 * 2 * 2 and all(".lora.q." in n or ".lora.down." in n for n in names)


def test_dropout_is_the_inputs_and_only_in_training():
    adapter = lora.LoraAdapter(40, 3, r=2, alpha=2.0, dropout=0.5)
    with torch.no_grad():
        adapter.a.normal_()
        adapter.b.normal_()
    x = torch.randn(5, 40)
    torch.manual_seed(3)
    got = adapter(x)
    torch.manual_seed(3)
    assert torch.equal(got, F.linear(F.linear(F.dropout(x, 0.5), adapter.a), adapter.b))
    assert torch.allclose(adapter.eval()(x), x @ adapter.matrix().T, atol=1e-5)


def test_draws_are_a_function_of_seed_and_name(decoder):
    other = copy.deepcopy(decoder)
    a = lora.attach(decoder, **OPTIONS)
    torch.randn(9)
    b = lora.attach(other, **(OPTIONS | {"targets": ["up"]}))
    drawn = {n: p for n, p in decoder.named_parameters() if ".lora.up." in n}
    assert all(torch.equal(p, other.get_parameter(n)) for n, p in drawn.items()) and len(b) == 4 < len(a)


@pytest.mark.parametrize("samples", [1, 6])
def test_dropout_draws_the_same_masks_with_every_backend(samples):
    found = []
    for backend in (Eager(), Sdpa()):
        made = paper_objective.objective(backend=backend)
        parameters = lora.attach(made.lmm.decoder, **(OPTIONS | {"dropout": 0.3}))
        made.double().train()
        batch, _ = paper_objective.packed((*paper_objective.CHATS, *paper_objective.CAPTIONS)[:samples])
        torch.manual_seed(5)
        sums = made(batch).sums
        sums["next_token"].backward()
        found.append([sums["next_token"].detach(), *(p.grad for p in parameters)])
        after = torch.get_rng_state()
        found[-1].append(after.double())
    assert any(g.any() for g in found[0][1:-1])
    for one, other in zip(*found, strict=True):
        assert torch.allclose(one, other, rtol=1e-9, atol=1e-12)
