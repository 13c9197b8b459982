"""Generation: alone, ragged, shared, cached and recomputed are the same; transformers agrees."""

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from lmmkit.attention.backends import Sdpa
from lmmkit.attention.eager import Eager
from lmmkit.inference.generate import Sampled, generate, greedy
from tests.support import hf_weights, plain_twins
from tests.support.plain_twins import off, show
from tests.support.tiny_model import TEXT, packed, prompt, random_ids, text_batch, tiny_lmm

NEW, EOS, NEVER = 12, 2, -1
PROMPTS = [random_ids(n, n) for n in (3, 17, 1, 9)]
NEAR = 1e-4  # two logits closer than this may change places


def write(
    lmm, batch, leaves, *, max_new_tokens=NEW, eos=NEVER, choose=greedy, tokens=None
) -> list[list[int]]:
    return generate(
        lmm, batch, leaves, tokens=tokens or {}, max_new_tokens=max_new_tokens, eos=eos, choose=choose
    )


def ends(prompts) -> list[int]:
    return (torch.tensor([len(p) for p in prompts]).cumsum(0) - 1).tolist()


class Kept:
    """The greedy choice, and the logits it was made from."""

    def __init__(self):
        self.logits: list[torch.Tensor] = []

    def __call__(self, logits_QV: torch.Tensor) -> torch.Tensor:
        self.logits.append(logits_QV)
        return greedy(logits_QV)


def theirs(lmm, prompts) -> tuple[list[list[int]], torch.Tensor]:
    """Greedy ids of transformers for the left-padded batch, and its gap of the two best, [Q, new]."""
    config = LlamaConfig(
        vocab_size=TEXT.vocab, hidden_size=TEXT.width, num_hidden_layers=TEXT.depth, head_dim=TEXT.head_size,
        num_attention_heads=TEXT.heads, num_key_value_heads=TEXT.kv_heads, intermediate_size=TEXT.mlp,
        rms_norm_eps=TEXT.norm_eps, attn_implementation="eager",
    )  # fmt: skip
    model = hf_weights.load(LlamaForCausalLM(config), hf_weights.of_decoder(lmm.decoder), spare="^$")
    longest = max(map(len, prompts))
    ids = torch.tensor([[0] * (longest - len(p)) + p for p in prompts])
    seen = torch.tensor([[0] * (longest - len(p)) + [1] * len(p) for p in prompts])
    out = model.generate(
        ids, attention_mask=seen, do_sample=False, max_new_tokens=NEW, min_new_tokens=NEW, eos_token_id=None,
        pad_token_id=0, output_logits=True, return_dict_in_generate=True,
    )  # fmt: skip
    best = torch.stack(out.logits, 1).topk(2).values
    return out.sequences[:, longest:].tolist(), best[..., 0] - best[..., 1]


def near_ties(ours, want, gap_QN) -> int:
    """Counts answers that differ from the reference, and checks that the first difference is a near tie."""
    parted = 0
    for mine, other, gap_N in zip(ours, want, gap_QN.tolist(), strict=True):
        if mine != other:
            first = next(i for i, (a, b) in enumerate(zip(mine, other, strict=True)) if a != b)
            assert gap_N[first] < NEAR, (first, gap_N[first])
            parted += 1
    return parted


@pytest.mark.parametrize("backend", [Sdpa(), Eager()], ids=lambda b: b.name)
def test_greedy_alone_is_greedy_in_a_ragged_batch_is_transformers(backend):
    lmm = tiny_lmm(backend=backend)
    want, gap = theirs(lmm, PROMPTS)
    alone = [write(lmm, text_batch([p]), [len(p) - 1])[0] for p in PROMPTS]
    ragged = write(lmm, text_batch(PROMPTS), ends(PROMPTS))
    assert all(len(row) == NEW for row in alone) and len(set(map(tuple, want))) == len(PROMPTS)
    ties = near_ties(alone, want, gap) + near_ties(ragged, want, gap)
    show("near_ties", ties)
    assert ties <= 1


def test_zero_new_tokens_are_refused():
    with pytest.raises(ValueError, match=r"max_new_tokens: .* got 0"):
        write(tiny_lmm(), text_batch([[5, 6]]), [1], max_new_tokens=0)


def test_many_questions_on_one_image_are_answered_as_if_alone():
    lmm = tiny_lmm(dtype=torch.float64)
    questions = [[5, *random_ids(n, n)] for n in (1, 4, 7)]
    layouts = [prompt(ids, "a") for ids in questions]
    batch, paths = packed([layouts])
    assert len(batch) < sum(map(len, paths))
    kept = Kept()
    got = write(lmm, batch, [path[-1] for path in paths], choose=kept)
    for i, layout in enumerate(layouts):
        one, path = packed([[layout]])
        own = Kept()
        assert write(lmm, one, [path[0][-1]], choose=own) == [got[i]]
        assert off(torch.stack(kept.logits)[:, i], torch.cat(own.logits)) < 1e-12


def test_decoding_in_reserved_rows_is_recomputing_from_scratch():
    lmm = tiny_lmm(dtype=torch.float64)
    layouts = [prompt(random_ids(6, 1), "a", 2), prompt(random_ids(9, 2), "b", 4)]
    batch, paths = packed([[layout] for layout in layouts])
    kept = Kept()
    with torch.no_grad():
        written = write(lmm, batch, [path[-1] for path in paths], choose=kept)
        x_TD = lmm.rows(batch, lmm.project(lmm.encode(batch)), {})
        for i, path in enumerate(paths):
            for step in range(NEW):
                past = lmm.decoder.embed(torch.tensor(written[i][:step], dtype=torch.int64))
                hidden, _ = plain_twins.decoder(lmm.decoder, torch.cat([x_TD[path], past]))
                assert off(kept.logits[step][i], lmm.logits(hidden[-1:])[0]) < 1e-12


def test_an_answer_ends_before_its_end_token_and_the_others_go_on():
    lmm, batch = tiny_lmm(), text_batch(PROMPTS)
    free = write(lmm, batch, ends(PROMPTS))
    eos = free[1][4]
    stopped = write(lmm, batch, ends(PROMPTS), eos=eos)
    for row, whole in zip(stopped, free, strict=True):
        assert row == (whole[: whole.index(eos)] if eos in whole else whole)
    assert len(stopped[1]) <= 4


def test_generation_stops_when_all_have_ended_and_streams_every_token():
    lmm, ids = tiny_lmm(), PROMPTS[1]
    whole = write(lmm, text_batch([ids]), [len(ids) - 1])[0]
    eos, streamed = whole[5], []
    generate(
        lmm, text_batch([ids]), [len(ids) - 1], tokens={}, max_new_tokens=NEW, eos=eos,
        on_token=lambda id_Q: streamed.append(int(id_Q[0])),
    )  # fmt: skip
    assert streamed == whole[: whole.index(eos) + 1]
    streamed.clear()
    generate(
        lmm, text_batch([ids]), [len(ids) - 1], tokens={}, max_new_tokens=NEW, eos=NEVER,
        on_token=lambda id_Q: streamed.append(int(id_Q[0])),
    )  # fmt: skip
    assert streamed == whole


def sampled(lmm, ids, *, seed: int, top_p: float, temperature: float = 1.5) -> list[int]:
    chooser = Sampled(temperature, top_p, torch.Generator().manual_seed(seed))
    return write(lmm, text_batch([ids]), [len(ids) - 1], choose=chooser)[0]


def test_sampling_is_a_function_of_its_seed():
    lmm, ids = tiny_lmm(), PROMPTS[3]
    first = sampled(lmm, ids, seed=1, top_p=1.0)
    torch.rand(7)
    assert sampled(lmm, ids, seed=1, top_p=1.0) == first != sampled(lmm, ids, seed=2, top_p=1.0)


def test_a_tiny_top_p_is_greedy():
    lmm, ids = tiny_lmm(), PROMPTS[3]
    want = write(lmm, text_batch([ids]), [len(ids) - 1])[0]
    assert sampled(lmm, ids, seed=1, top_p=1e-6) == want
    assert sampled(lmm, ids, seed=1, top_p=1.0, temperature=1e-4) == want


@pytest.mark.parametrize(("top_p", "temperature"), [(0.0, 1.0), (1.0, 1e-300), (0.0, 1e-300), (0.5, 5e-324)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_the_extremes_of_sampling_are_greedy(top_p, temperature, dtype):
    logits = torch.tensor([[-3.0, 900.0, 800.0, 0.0], [5.0, -60_000.0, 4.5, 4.0]], dtype=dtype)
    chooser = Sampled(temperature, top_p, torch.Generator().manual_seed(0))
    assert chooser(logits).tolist() == [1, 0]


def test_top_p_keeps_the_fewest_tokens_that_reach_it():
    logits = torch.tensor([[0.5, 0.3, 0.15, 0.05]]).log().flip(-1)
    draws = lambda p: {int(Sampled(1.0, p, torch.Generator().manual_seed(s))(logits)[0]) for s in range(60)}
    assert (
        draws(0.4) == {3} and draws(0.6) == {3, 2} and draws(0.9) == {3, 2, 1} and draws(1.0) == {3, 2, 1, 0}
    )
