"""Greedy generation compared with transformers' `generate`: the same tokens, on a random 50M model.

OMP_NUM_THREADS=2 pytest benches/test_generation.py --benchmark-json=out.json
python benches/summary.py out.json
"""

from __future__ import annotations

import pytest
import torch
import transformers as hf

import lmmkit
from benches.pairs import compare
from benches.workload import IMAGE, VOCAB, Numbers, work
from lmmkit.api.sample import Image, Sample, Turn, View
from lmmkit.data.chat_templates import lay_out_prompt
from lmmkit.data.fits.rows import FixedRows
from lmmkit.data.micro_batch.laid_out import LaidOut
from lmmkit.inference.generate import generate
from tests.support.hf_weights import scramble

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
        ids = theirs.generate(
            input_ids=id_BT, attention_mask=mask_BT, max_new_tokens=NEW, do_sample=False, pad_token_id=0
        )
        return ids[:, id_BT.shape[1] :]

    assert torch.equal(mine(), peer())
    found = compare(mine, peer)
    rates = {name: batch * NEW / found[name] for name in ("seconds", "peer_seconds")}
    benchmark.extra_info.update(
        found, sense="at least", gate=1.2, target=2.0, peer=f"transformers {hf.__version__} generate", loss_diff=0.0,
        parameters=sum(p.numel() for p in theirs.parameters()), tokens_per_second=rates["seconds"],
        peer_tokens_per_second=rates["peer_seconds"],
    )  # fmt: skip
    benchmark.pedantic(mine, rounds=1)


QUESTIONS = 20


def test_many_questions_on_one_image(benchmark):
    """Asks many questions about one image, like an evaluation: the common prefix is read once."""
    made = work("L", "llava")
    draw = torch.Generator().manual_seed(0)
    words = [torch.randint(20, VOCAB, (12,), generator=draw).tolist() for _ in range(QUESTIONS)]
    image = Image("/one.png")
    asked = [
        Sample(
            key=str(i),
            images=(image,),
            turns=(Turn("user", " ".join(map(str, each)), 1),),
            template="plain",
        )
        for i, each in enumerate(words)
    ]
    layouts = [lay_out_prompt(each, Numbers(), rows_of=FixedRows(made.config.side**2)) for each in asked]
    members = [LaidOut(View(sample=each), layout) for each, layout in zip(asked, layouts, strict=True)]
    batch, paths = made.pack([made.packer.sized(members)])
    flat = [[i for span in x for i in (span.ids or [IMAGE] * span.n)] for x in layouts]
    pixels = made.pixels(image).expand(QUESTIONS, -1, -1, -1)
    made.theirs.eval().generation_config.eos_token_id = None
    made.theirs.set_attn_implementation("sdpa")
    lmm = made.ours.lmm.eval()

    def mine():
        ids = generate(lmm, batch, [int(p[-1]) for p in paths], tokens={}, max_new_tokens=NEW, eos=[10**6])
        return torch.tensor(ids)

    def peer():
        ids = made.theirs.generate(
            input_ids=torch.tensor(flat),
            pixel_values=pixels,
            max_new_tokens=NEW,
            do_sample=False,
            pad_token_id=0,
        )
        return ids[:, len(flat[0]) :]

    assert torch.equal(mine(), peer())
    found = compare(mine, peer)
    benchmark.extra_info.update(
        found, sense="at least", gate=1.2, target=2.0, loss_diff=0.0, rows=len(batch), questions=QUESTIONS,
        peer=f"transformers {hf.__version__} generate, the image in each of the batch",
    )  # fmt: skip
    benchmark.pedantic(mine, rounds=1)
