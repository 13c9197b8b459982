"""Greedy generation against transformers' `generate`: the same tokens, on a random 50M model.

OMP_NUM_THREADS=2 pytest benches/test_generation.py --benchmark-json=out.json
python benches/summary.py out.json
"""

from __future__ import annotations

import pytest
import torch
import transformers as hf

import lmmkit
from benches.pairs import compare
from tests.hf_weights import scramble

NEW = 48


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    config = hf.LlamaConfig(
        hidden_size=512, num_hidden_layers=6, num_attention_heads=8, intermediate_size=1376, vocab_size=32_000,
        max_position_embeddings=1024, tie_word_embeddings=False,
    )  # fmt: skip
    theirs = hf.LlamaForCausalLM(config).eval()
    scramble(theirs, 0)
    theirs.generation_config.eos_token_id = None
    folder = tmp_path_factory.mktemp("model")
    theirs.save_pretrained(folder)
    return lmmkit.load(folder, device="cpu"), theirs


@pytest.mark.parametrize("batch", [1, 8])
def test_generation(pair, batch, benchmark):
    ours, theirs = pair
    draw = torch.Generator().manual_seed(batch)
    id_BT = torch.randint(3, 32_000, (batch, 200), generator=draw)
    mask_BT = torch.ones_like(id_BT)
    for b in range(1, batch):
        mask_BT[b, : 11 * b] = 0

    def mine():
        return ours.generate(id_BT, max_new_tokens=NEW, attention_mask=mask_BT, eos_token_id=[10**6])

    def peer():
        said = theirs.generate(
            input_ids=id_BT, attention_mask=mask_BT, max_new_tokens=NEW, do_sample=False, pad_token_id=0
        )
        return said[:, id_BT.shape[1] :]

    assert torch.equal(mine(), peer())
    found = compare(mine, peer)
    rates = {name: batch * NEW / found[name] for name in ("seconds", "peer_seconds")}
    benchmark.extra_info.update(
        found, gate=1.2, target=2.0, peer=f"transformers {hf.__version__} generate", loss_diff=0.0,
        parameters=sum(p.numel() for p in theirs.parameters()), tokens_per_second=rates["seconds"],
        peer_tokens_per_second=rates["peer_seconds"],
    )  # fmt: skip
    benchmark.pedantic(mine, rounds=1)
