"""Shares of ranks: every sample once, and the fullest rank near the mean."""

from __future__ import annotations

import numpy as np
import pytest

from lmmkit.data.length_grouping import GroupedSampler
from lmmkit.data.rank_shares import balanced_shares, estimated_rows
from lmmkit.data.sampler import Sampler

IMAGE_ROWS = 576


def test_every_sample_has_one_rank():
    rows = np.random.default_rng(0).lognormal(5, 1, 50).tolist()
    for world in (1, 2, 3, 8, 64):
        shares = balanced_shares(rows, world)
        assert len(shares) == world and sorted(i for share in shares for i in share) == list(range(50))


def test_an_image_counts_as_its_rows():
    assert estimated_rows(10, 576) == 576 + estimated_rows(-10, 576)


def records(n: int = 20_000) -> np.ndarray:
    """Returns word counts as in LLaVA's mix: lognormal, 6 % of the records without an image."""
    rng = np.random.default_rng(7)
    words = rng.lognormal(4.6, 0.8, n).astype(np.int64) + 1
    return np.where(rng.random(n) < 0.06, -4 * words, words)


@pytest.mark.parametrize("group", ["none", "modality", "length"])
def test_the_fullest_of_eight_ranks_has_little_more_rows_than_the_mean(group):
    words, world, samples = records(), 8, 128
    order = Sampler({"mix": len(words)}, {"mix": 1.0}, 3)
    if group != "none":
        order = GroupedSampler(
            order, {"mix": words}, samples=samples, total=len(words), by_length=group == "length"
        )
    rng = np.random.default_rng(1)
    tokens = 1.3 * rng.normal(1, 0.1, len(words)).clip(0.7, 1.5)  # a word has not always as many tokens
    fullest, dealt = [], []
    for step in range(len(words) // samples):
        at = [order.at(k)[2] for k in range(step * samples, (step + 1) * samples)]
        rows = np.array([tokens[i] * abs(words[i]) + IMAGE_ROWS * (words[i] >= 0) for i in at])
        shares = balanced_shares([estimated_rows(int(words[i]), IMAGE_ROWS) for i in at], world)
        fullest.append(max(rows[share].sum() for share in shares) / (rows.sum() / world))
        dealt.append(max(part.sum() for part in rows.reshape(world, -1)) / (rows.sum() / world))
    print(f"{group}: {np.mean(fullest):.3f}, in contiguous parts {np.mean(dealt):.3f}")
    assert np.mean(fullest) <= 1.05 and np.mean(fullest) < np.mean(dealt)
