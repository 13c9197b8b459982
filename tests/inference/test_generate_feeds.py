"""Learned rows behind tokens that the model writes: the same as whole sequences without a cache."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from lmmkit.inference.generate import generate
from tests.inference.test_generate import NEVER, Kept
from tests.support import plain_twins
from tests.support.plain_twins import off
from tests.support.tiny_model import TEXT, packed, prompt, random_ids, tiny_lmm

NEW = 10
LAYOUTS = [prompt(random_ids(6, 1), "a", 2), prompt(random_ids(9, 2), "b", 4), prompt(random_ids(4, 3))]


def learned(n: int, seed: int) -> torch.Tensor:
    noise = torch.randn(n, TEXT.width, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return 0.5 * noise


def write(lmm, feeds, *, layouts=LAYOUTS, choose=None, eos=NEVER, on_token=lambda id_Q: None):
    batch, paths = packed([[layout] for layout in layouts])
    return generate(
        lmm, batch, [int(path[-1]) for path in paths], tokens={}, max_new_tokens=NEW, eos=eos,
        choose=choose or Kept(), feeds=feeds, on_token=on_token,
    )  # fmt: skip


def plain_logits(lmm, layout, written, feed):
    """Yields the logits for each token of an answer, from whole sequences without a cache."""
    batch, (path,) = packed([[layout]])
    x_TD = lmm.rows(batch, lmm.project(lmm.encode(batch)), {})[path]
    for token in [*written, None]:
        hidden_TD, _ = plain_twins.decoder(lmm.decoder, x_TD)
        yield lmm.logits(hidden_TD[-1:])[0]
        if token is not None:
            own = lmm.decoder.embed(torch.tensor([token]))
            x_TD = torch.cat([x_TD, own, feed.get(token, x_TD[:0])])


@torch.no_grad()
def written_often(lmm) -> list[int]:
    """Returns tokens that the three answers contain, at different steps."""
    free = write(lmm, ())
    return [free[0][2], free[1][4], free[2][0]]


@torch.no_grad()
def test_rows_behind_a_written_token_are_those_of_training():
    lmm = tiny_lmm(dtype=torch.float64)
    often = written_often(lmm)
    rows = [learned(1 + i, i) for i in range(3)]
    feeds = [dict(zip(often, rows, strict=True)), {often[1]: rows[2]}, {often[2]: rows[0]}]
    kept = Kept()
    answers = write(lmm, feeds, choose=kept)
    assert any(token in feed for answer, feed in zip(answers, feeds, strict=True) for token in answer[:-1])
    for i, (layout, feed) in enumerate(zip(LAYOUTS, feeds, strict=True)):
        alone = Kept()
        assert write(lmm, [feed], layouts=[layout], choose=alone) == [answers[i]]
        for step, want in enumerate(plain_logits(lmm, layout, answers[i][:-1], feed)):
            assert off(kept.logits[step][i], want) < 1e-12
            assert off(alone.logits[step][0], want) < 1e-12


@torch.no_grad()
def test_feeds_that_nothing_calls_for_change_no_bit():
    lmm = tiny_lmm()
    free, fed = Kept(), Kept()
    without = write(lmm, (), choose=free)
    absent = next(i for i in range(TEXT.vocab) if all(i not in answer for answer in without))
    assert write(lmm, [{absent: learned(2, 0)}] * 3, choose=fed) == without
    assert all(torch.equal(a, b) for a, b in zip(free.logits, fed.logits, strict=True))


@torch.no_grad()
@pytest.mark.parametrize("n", [1, 3])
def test_an_answer_ends_where_its_rows_fill_the_context(n):
    lmm = tiny_lmm(dtype=torch.float64)
    free = write(lmm, (), layouts=LAYOUTS[:1])[0]
    rows = sum(span.n for span in LAYOUTS[0])
    feed = {token: learned(n, token) for token in range(TEXT.vocab)}
    full = write(lmm, [feed], layouts=LAYOUTS[:1])[0]
    assert len(full) == NEW and full[0] == free[0]
    for room in range(NEW, NEW * (1 + n)):
        lmm.decoder.shape = replace(lmm.decoder.shape, context=rows + room)
        cut = write(lmm, [feed], layouts=LAYOUTS[:1])[0]
        assert cut == full[: min(NEW, 1 + (room - 1) // (1 + n))]


@torch.no_grad()
def test_an_ended_answer_takes_no_more_rows():
    lmm = tiny_lmm(dtype=torch.float64)
    free = write(lmm, ())
    feeds, streamed = [{token: learned(2, 0) for token in range(TEXT.vocab)}] * 3, []
    eos = free[0][0]
    answers = write(lmm, feeds, eos=eos, on_token=lambda id_Q: streamed.append(id_Q.tolist()))
    assert answers[0] == [] and streamed[0][0] == eos
    for i in (1, 2):
        assert answers[i] == write(lmm, feeds[:1], layouts=[LAYOUTS[i]], eos=eos)[0]
