"""python -m benches.scoring [--answers 100000]: times the official scoring of VQAv2 answers, on one core.

Once with texts that repeat, as answers of people do, and once with texts that are all different, which the cache
of normalised texts cannot help. Ends with 1 if one of them takes longer than the gate.
"""

from __future__ import annotations

import argparse
import random
import sys
import time

from lmmkit.evaluate.benchmarks.benchmark import Item
from lmmkit.evaluate.benchmarks.vqav2 import VqaV2

GATE = 5.0  # seconds for 100,000 answers
TYPES = 65  # question types of VQAv2


def made(n: int, *, different: bool) -> tuple[list[Item], list[str]]:
    """Returns items with ten human answers each, and an answer to each."""
    draw = random.Random(0)
    words = [f"word{i}" for i in range(3000)]
    words += ["yes", "no", "2", "two", "a dog", "red, white", "it's", "t-shirt"] * 50
    items, answers = [], []
    for i in range(n):
        pool = draw.choices(words, k=draw.randint(1, 5))
        if different:
            pool = [f"the {word}-{i}, {j}." for j, word in enumerate(pool)]
        humans = draw.choices(pool, k=10)
        groups = {"answer_type": "other", "question_type": f"type {i % TYPES}"}
        items.append(Item(id=str(i), prompt="?", gold=humans, cluster=str(i // 5), groups=groups))
        answers.append(draw.choice(humans) + ".")
    return items, answers


def main() -> int:
    """Prints the seconds of both."""
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--answers", type=int, default=100_000)
    n = options.parse_args().answers
    benchmark, took = VqaV2(), {}
    for different in (False, True):
        items, answers = made(n, different=different)
        start = time.perf_counter()
        verdicts = [benchmark.verdict(item, answer) for item, answer in zip(items, answers, strict=True)]
        figures = benchmark.figures(items, verdicts)
        took[different] = time.perf_counter() - start
        kind = "all different" if different else "repeating"
        print(f"{n:,} answers, {kind}: {took[different]:.2f} s; accuracy {figures['accuracy'].in_percent()}")
    return int(max(took.values()) > GATE * max(1.0, n / 100_000))


if __name__ == "__main__":
    sys.exit(main())
