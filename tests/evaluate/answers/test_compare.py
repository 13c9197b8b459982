"""Two models on the same questions: beside formulas from the books, and what the tests say of equal models."""

from __future__ import annotations

import sys
import tracemalloc
from math import comb

import numpy as np
import pytest

from lmmkit.errors import MachineError, UserError
from lmmkit.evaluate.answers import compare
from lmmkit.evaluate.answers.compare import compare_answers, compare_tasks, libraries
from lmmkit.evaluate.answers.schema import Answer


def answers(scores, prompt: str = "p") -> list[Answer]:
    return [
        Answer(
            task="t", split="s", data="d", id=str(i), row=i, condition="own", question="?", images=(), cluster=str(i // 2),
            prompt_sha=prompt, raw="x", score=score,
        )
        for i, score in enumerate(scores)
    ]  # fmt: skip


def mcnemar(b: int, c: int) -> float:
    """Returns the exact two-sided p: as many or more heads in b + c throws of a coin."""
    n, k = b + c, min(b, c)
    return min(1.0, 2 * sum(comb(n, i) for i in range(k + 1)) / 2**n)


@pytest.mark.parametrize(("b", "c"), [(0, 0), (1, 0), (5, 5), (12, 3), (0, 9)])
def test_mcnemar_is_the_sum_of_the_binomial(b, c):
    first = [1.0] * b + [0.0] * c + [1.0] * 10 + [0.0] * 10
    second = [0.0] * b + [1.0] * c + [1.0] * 10 + [0.0] * 10
    found = compare_answers("t", answers(first), answers(second))
    assert (found.only_first, found.only_second, found.n) == (b, c, 20 + b + c)
    assert found.p == pytest.approx(mcnemar(b, c))
    assert found.difference.value == pytest.approx((c - b) / found.n)
    assert found.difference.low <= found.difference.value <= found.difference.high


def test_only_common_questions_with_one_prompt_count():
    first, second = answers([1, 1, 0, 0]), [*answers([1, 0, 0]), *answers([0] * 4, prompt="other")[3:]]
    found = compare_answers("t", first, second)
    assert found.n == 3 and found.left_out == 2
    with pytest.raises(UserError, match="answers/other-questions"):
        compare_answers("t", answers([1, 0]), answers([1, 0], prompt="q"))
    with pytest.raises(UserError, match="answers/other-questions"):
        compare_answers("t", answers([None]), answers([1]))


def test_shares_are_tested_by_random_signs():
    rng = np.random.default_rng(0)
    base = rng.choice([0, 0.3, 0.6, 0.9], 200)
    same = compare_answers("t", answers(base), answers(rng.permutation(base)))
    better = compare_answers("t", answers(np.minimum(1, base + 0.1 * (rng.random(200) < 0.5))), answers(base))
    assert same.p > 0.05 and better.p < 0.001 and better.difference.high < 0


def test_holm_corrects_for_all_tasks():
    rows = {"a": (9, 0), "b": (12, 3), "c": (5, 4)}
    make = lambda b, c, flip: answers([float(not flip)] * b + [float(flip)] * c + [1.0] * 20)
    found = compare_tasks(
        {task: make(b, c, False) for task, (b, c) in rows.items()},
        {task: make(b, c, True) for task, (b, c) in rows.items()},
    )
    p = sorted(each.p for each in found)
    by_hand, most = {}, 0.0
    for i, each in enumerate(p):
        most = max(most, min(1.0, (len(p) - i) * each))
        by_hand[each] = most
    assert [each.p_holm for each in found] == pytest.approx([by_hand[each.p] for each in found])
    assert compare_tasks({"a": answers([1])}, {"b": answers([1])}) == []


def test_the_detectable_difference_is_detected_four_times_of_five():
    rng = np.random.default_rng(1)
    base = [(rng.random(400) < 0.5).astype(float) for _ in range(2)]
    effect = compare_answers("t", answers(base[0]), answers(base[1])).detectable
    hits = 0
    for _ in range(120):
        first = rng.random(400) < 0.5
        second = rng.random(400) < 0.5 + effect
        difference = compare_answers(
            "t", answers(first.astype(float)), answers(second.astype(float))
        ).difference
        hits += difference.low > 0
    assert 0.68 <= hits / 120 <= 0.92


def test_random_signs_are_drawn_in_parts_that_fit_into_memory(monkeypatch):
    values = np.random.default_rng(0).normal(0.16, 1, 100)
    whole = compare.random_signs(values)  # 64 MB
    monkeypatch.setattr(compare, "AT_ONCE", 1 << 16)
    tracemalloc.start()
    parts = compare.random_signs(values)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert parts == pytest.approx(whole, abs=0.02) and peak < 8e6


def test_without_the_extra_its_name_is_given(monkeypatch):
    monkeypatch.setitem(sys.modules, "statsmodels.stats.multitest", None)
    with pytest.raises(MachineError, match="answers/not-installed") as error:
        libraries()
    assert "lmmkit[stats]" in error.value.problems[0].hint


def test_questions_of_one_image_have_no_interval():
    for first, second, p in (([1, 1], [0, 0], 0.5), ([0.3, 0.6], [0.0, 0.0], 0.5), ([0.3], [0.6], 1.0)):
        found = compare_answers("t", answers(first), answers(second))
        assert (found.difference.low, found.difference.high, found.detectable) == (None, None, None)
        assert found.p == pytest.approx(p)
