"""The resampler beside the perceiver resampler of Idefics2 in transformers."""

import pytest
import torch
from transformers.models.idefics2.configuration_idefics2 import Idefics2PerceiverConfig
from transformers.models.idefics2.modeling_idefics2 import Idefics2PerceiverResampler

from lmmkit.model.connectors.resampler import ResamplerConnector
from lmmkit.model.init import init
from tests.support.hf_weights import scramble
from tests.support.plain_twins import off

QUERIES, DEPTH, HEADS, WIDTH = 5, 2, 3, 12


@pytest.mark.parametrize("grid", [(3, 3), (2, 5)])
def test_rows_are_those_of_transformers(grid):
    config = Idefics2PerceiverConfig(
        hidden_size=WIDTH, hidden_act="silu", resampler_n_latents=QUERIES, resampler_depth=DEPTH,
        resampler_n_heads=HEADS, resampler_head_dim=WIDTH // HEADS, num_key_value_heads=HEADS,
    )  # fmt: skip
    theirs = Idefics2PerceiverResampler(config).double().eval()
    scramble(theirs, 1)
    ours = ResamplerConnector(8, WIDTH, grid, queries=QUERIES, depth=DEPTH, heads=HEADS)
    scramble(ours, 2)
    ours.double()
    with torch.no_grad():
        ours.queries.weight.copy_(theirs.latents)
        ours.norm.weight.copy_(theirs.norm.weight)
        for block, layer in zip(ours.blocks, theirs.layers, strict=True):
            attention, mlp = layer.self_attn, layer.mlp
            pairs = {
                block.query_norm: layer.input_latents_norm.weight,
                block.token_norm: layer.input_context_norm.weight,
                block.q: attention.q_proj.weight,
                block.kv: torch.cat([attention.k_proj.weight, attention.v_proj.weight]),
                block.out: attention.o_proj.weight, block.mlp_norm: layer.post_attention_layernorm.weight,
                block.mlp.gate_up: torch.cat([mlp.gate_proj.weight, mlp.up_proj.weight]),
                block.mlp.down: mlp.down_proj.weight,
            }  # fmt: skip
            for module, weight in pairs.items():
                module.weight.copy_(weight)
    x_IND = torch.randn(
        3, grid[0] * grid[1], 8, dtype=torch.float64, generator=torch.Generator().manual_seed(0)
    )
    everything = torch.ones(3, x_IND.shape[1], dtype=torch.int64)
    want = theirs(context=ours.first(x_IND), attention_mask=everything)
    want = want if isinstance(want, torch.Tensor) else want[0]
    assert ours(x_IND).shape == (3, QUERIES, WIDTH)
    assert off(ours(x_IND), want) < 1e-5  # their norms round to float32; the twin in test_kinds.py is exact


def test_heads_divide_the_width_and_rows_are_the_queries():
    settings = {"queries": QUERIES, "depth": DEPTH, "heads": HEADS}
    assert ResamplerConnector.rows((9, 9), **settings) == QUERIES
    assert ResamplerConnector.misfit((9, 9), WIDTH, **settings) is None
    assert ResamplerConnector.misfit((9, 9), WIDTH + 1, **settings)[:2] == ("heads", "3")


def test_a_seed_draws_every_value():
    drawn = []
    for _ in range(2):
        made = ResamplerConnector(8, WIDTH, (3, 3), queries=QUERIES, depth=DEPTH, heads=HEADS)
        with torch.no_grad():
            for p in made.parameters():
                p.fill_(7.5)
        init(made, 3)
        drawn.append(dict(made.named_parameters()))
    assert all(torch.equal(p, drawn[1][name]) and not (p == 7.5).any() for name, p in drawn[0].items())
