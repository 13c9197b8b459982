"""The decoder against its dense twin, and against transformers on random weights."""

from dataclasses import replace

import pytest
import torch
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)

from lmmkit.attention.backends import Sdpa
from lmmkit.attention.eager import Eager
from lmmkit.attention.forest import roots
from lmmkit.attention.schedule import AttentionSpec
from lmmkit.model.decoder import Decoder, DecoderShape
from lmmkit.model.init import init
from lmmkit.model.rope import Rope
from tests.support import hf_weights, plain_twins
from tests.support.plain_twins import off, show
from tests.support.tiny_model import TEXT, random_ids

CPU = torch.device("cpu")
WIDE = {"vocab": 97, "depth": 3, "context": 64}
LLAMAS = {
    "grouped heads": DecoderShape(width=24, heads=6, kv_heads=2, head_size=4, mlp=52, **WIDE),
    "odd head size": DecoderShape(
        width=20, heads=4, kv_heads=4, head_size=6, mlp=33, rope=Rope(theta=5e5), **WIDE
    ),
    "tied, one kv head": DecoderShape(width=32, heads=4, kv_heads=1, head_size=16, mlp=40, tied=True, **WIDE),
}
QWENS = {
    "qkv bias": (
        DecoderShape(width=24, heads=4, kv_heads=2, head_size=6, mlp=40, qkv_bias=True, **WIDE),
        Qwen2Config,
    ),
    "qk norm": (
        DecoderShape(width=24, heads=4, kv_heads=2, head_size=8, mlp=40, qk_norm=True, **WIDE),
        Qwen3Config,
    ),
}
CLASSES = {LlamaConfig: LlamaForCausalLM, Qwen2Config: Qwen2ForCausalLM, Qwen3Config: Qwen3ForCausalLM}


def scrambled(shape: DecoderShape, dtype=torch.float32) -> Decoder:
    decoder = Decoder(shape)
    hf_weights.scramble(decoder, 3)
    return decoder.to(dtype)


def theirs(decoder: Decoder, config_class=LlamaConfig):
    s = decoder.shape
    extra = {} if config_class is Qwen2Config else {"head_dim": s.head_size}
    config = config_class(
        vocab_size=s.vocab, hidden_size=s.width, num_hidden_layers=s.depth, num_attention_heads=s.heads,
        num_key_value_heads=s.kv_heads, intermediate_size=s.mlp, max_position_embeddings=s.context,
        rms_norm_eps=s.norm_eps, tie_word_embeddings=s.tied, attn_implementation="eager", pad_token_id=0,
        rope_parameters={"rope_type": "default", "rope_theta": s.rope.theta}, **extra,
    )  # fmt: skip
    return hf_weights.load(CLASSES[config_class](config), hf_weights.of_decoder(decoder), spare="^$")


def logits(decoder: Decoder, lengths: list[int], ids: list[int], backend) -> torch.Tensor:
    forest = roots(lengths)
    none = torch.empty(0, dtype=torch.int64)
    attention_fn = backend.prepare(AttentionSpec(forest, torch.zeros(len(ids), dtype=torch.bool), none), CPU)
    hidden, *_ = decoder(decoder.embed(torch.tensor(ids)), forest.pos_T, [attention_fn] * decoder.shape.depth)
    return decoder.head(hidden)


def assert_parity(decoder: Decoder, config_class) -> None:
    model, docs = theirs(decoder, config_class), [random_ids(n, n, 97) for n in (23, 7)]
    with torch.no_grad():
        want = torch.cat([model(torch.tensor([ids])).logits[0] for ids in docs])
        for backend in (Sdpa(), Eager()):
            got = logits(decoder, [23, 7], docs[0] + docs[1], backend)
            show(f"off_{backend.name}", off(got, want))
            assert off(got, want) < 1e-5


@pytest.mark.parametrize("name", LLAMAS)
def test_two_packed_documents_are_two_passes_of_llama(name):
    assert_parity(scrambled(LLAMAS[name]), LlamaConfig)


@pytest.mark.parametrize("name", QWENS)
def test_two_packed_documents_are_two_passes_of_qwen(name):
    shape, config = QWENS[name]
    assert_parity(scrambled(shape), config)


@pytest.mark.parametrize("shape", [*LLAMAS.values(), *(shape for shape, _ in QWENS.values())])
def test_states_and_mass_of_one_sequence_equal_the_dense_twin(shape):
    decoder = scrambled(shape, torch.float64)
    ids, key_T, row_R = torch.tensor(random_ids(20, 5, 97)), torch.arange(20) % 20 < 9, torch.arange(6, 20)
    hidden, maps = plain_twins.decoder(decoder, decoder.embed(ids))
    want = maps[:, :, row_R][..., key_T].sum(-1).mean(1)
    forest = roots([20])
    for backend in (Sdpa(), Eager()):
        attention_fn = backend.prepare(AttentionSpec(forest, key_T, row_R), CPU)
        got, mass, *_ = decoder(decoder.embed(ids), forest.pos_T, [attention_fn] * shape.depth)
        assert off(got, hidden) < 1e-12 and off(mass, want) < 1e-12


def test_each_layer_may_be_given_another_attend():
    decoder, forest = scrambled(LLAMAS["grouped heads"]), roots([9])
    rows = torch.arange(9)
    attention_fns = [Sdpa().prepare(AttentionSpec(forest, rows < n, rows), CPU) for n in (0, 4, 9)]
    _, mass, *_ = decoder(decoder.embed(rows), forest.pos_T, attention_fns)
    assert mass[0].tolist() == [0] * 9 and 0 < mass[1, -1] < 1 and mass[2].tolist() == pytest.approx([1] * 9)
    with pytest.raises(ValueError, match="zip"):
        decoder(decoder.embed(rows), forest.pos_T, attention_fns[:2])


def test_a_tied_head_is_the_embedding_and_counts_once():
    tied, free = (Decoder(replace(TEXT, tied=t)) for t in (True, False))
    assert tied.head.weight is tied.embed.weight
    count = lambda module: sum(p.numel() for p in module.parameters())
    assert count(free) - count(tied) == TEXT.vocab * TEXT.width


def test_weights_are_a_function_of_seed_and_name_alone():
    small, deep = Decoder(TEXT), Decoder(replace(TEXT, depth=4))
    init(small, 7), torch.rand(5), init(deep, 7)
    deep_state = deep.state_dict()
    same = [k for k, t in small.state_dict().items() if torch.equal(t, deep_state[k])]
    scaled = [k for k in small.state_dict() if k not in same]
    assert same and all(k.endswith(("attention.out.weight", "mlp.down.weight")) for k in scaled)
    before = {k: t.clone() for k, t in small.state_dict().items()}
    init(small, 8)
    assert not torch.equal(before["embed.weight"], small.embed.weight)
    init(small, 7)
    assert all(torch.equal(before[k], t) for k, t in small.state_dict().items())
