"""Differences of figures that are no mean of scores, beside a plain loop over bootstrap samples."""

from __future__ import annotations

from dataclasses import replace
from random import Random

import numpy as np
import pytest

from lmmkit.evaluate.answers.probe import gains_of_sums
from lmmkit.evaluate.benchmarks.benchmark import Item
from lmmkit.evaluate.benchmarks.mmbench import ROTATION, MMBench
from lmmkit.evaluate.benchmarks.mme import PART_OF, Mme
from lmmkit.evaluate.benchmarks.pope import Pope
from lmmkit.evaluate.bootstrap import paired_gain
from tests.support.toy_benchmark import Toy


def of_pope() -> list[Item]:
    return [
        Item(id=f"{subset}{i}", prompt=f"{i % 4}?", gold="yes" if i % 4 < 2 else "no", cluster=f"{i // 4}.jpg", groups={"subset": subset})
        for subset in ("random", "popular", "adversarial")
        for i in range(40)
    ]  # fmt: skip


def of_mme() -> list[Item]:
    return [
        Item(id=f"{subtask}{i}{end}", prompt="?", gold=gold, cluster=f"{subtask}/{i}", groups={"part": PART_OF[subtask], "subtask": subtask})
        for subtask in ("existence", "count", "code_reasoning")
        for i in range(8)
        for end, gold in (("", "yes"), ("#2", "no"))
    ]  # fmt: skip


def of_mmbench() -> list[Item]:
    return [
        Item(id=str(i + turn * ROTATION), prompt="?", gold={"letter": "ABC"[(i + turn) % 3], "rotations": 2 + i % 2}, cluster=str(i))
        for i in range(30)
        for turn in range(2 + i % 2)
    ]  # fmt: skip


CASES = {
    "f1": (Pope(), of_pope(), ["yes", "no"]),
    "perception": (Mme(), of_mme(), ["yes", "no"]),
    "circular": (MMBench(), of_mmbench(), ["A", "B", "C"]),
}


def drawn(items: list[Item], picked: list[str]) -> list[int]:
    return [i for cluster in picked for i, item in enumerate(items) if item.cluster == cluster]


def copies(items: list[Item], picked: list[str]) -> list[Item]:
    """Returns the items of the drawn clusters; a cluster that is drawn twice becomes two."""
    found = []
    for number, cluster in enumerate(picked):
        for item in (item for item in items if item.cluster == cluster):
            turn = int(item.id) // ROTATION if item.id.isdigit() else 0
            id = str(number + turn * ROTATION) if item.id.isdigit() else f"{item.id}/{number}"
            found.append(replace(item, id=id, cluster=f"{cluster}/{number}"))
    return found


@pytest.mark.parametrize("figure", CASES)
def test_a_gain_of_a_headline_is_that_of_a_plain_loop(figure):
    benchmark, items, words = CASES[figure]
    draw = Random(5)
    verdicts = {}
    for condition, share in (("own", 0.8), ("blank", 0.3), ("swapped", 0.3), ("none", 0.2)):
        right = [item.gold["letter"] if isinstance(item.gold, dict) else item.gold for item in items]
        answers = [gold if draw.random() < share else draw.choice(words) for gold in right]
        verdicts[condition] = [benchmark.verdict(*each) for each in zip(items, answers, strict=True)]
    found = gains_of_sums(items, benchmark, verdicts)
    pairs = {
        "visual_gain": ("own", "blank"),
        "visual_gain_swapped": ("own", "swapped"),
        "leakage": ("blank", "none"),
    }
    names = {"perception": ("perception", "cognition")}.get(figure, (figure,))
    assert set(found) == {f"{pair}/{name}" for pair in pairs for name in names}

    clusters = sorted({item.cluster for item in items})
    whole = {c: benchmark.figures(items, each)[figure].value for c, each in verdicts.items()}
    for pair, (first, second) in pairs.items():
        got = found[f"{pair}/{figure}"]
        assert got.value == pytest.approx(whole[first] - whole[second]) and got.n == len(items)
        assert got.low < got.value < got.high
    rng, values, draws = np.random.default_rng(0), [], 60
    for row in rng.integers(len(clusters), size=(draws, len(clusters))):
        picked = [clusters[k] for k in row]
        places, several = drawn(items, picked), copies(items, picked)
        of = [
            benchmark.figures(several, [verdicts[c][i] for i in places])[figure].value
            for c in ("own", "blank")
        ]
        values.append(of[0] - of[1])
    own, blank = (benchmark.sums(items, verdicts[condition])[figure] for condition in ("own", "blank"))
    few = paired_gain(own, blank, [item.cluster for item in items], draws=draws)
    assert (few.low, few.high) == pytest.approx(tuple(np.percentile(values, [2.5, 97.5])))


def test_a_benchmark_of_means_has_no_further_gains():
    items = [Item(id="1", prompt="?", gold="a", cluster="1", groups={})]
    verdicts = {condition: [Toy().verdict(items[0], "a")] for condition in ("own", "blank")}
    assert gains_of_sums(items, Toy(), verdicts) == {}
