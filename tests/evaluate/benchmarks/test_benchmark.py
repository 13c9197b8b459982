"""The defaults of a benchmark: its status without public answers, no upload, and its table."""

from __future__ import annotations

from lmmkit.evaluate.benchmarks.benchmark import Benchmark, Item, Verdict
from lmmkit.evaluate.task import Figure


class Toy(Benchmark):
    name, title, splits, max_new_tokens, headline = "toy", "Toy", ("val",), 8, "accuracy"

    def items(self, files, *, split, cache):
        return [Item(id="1", prompt="1 + 1?", gold="2"), Item(id="2", prompt="1 + 2?", gold=None)]

    def verdict(self, item, answer):
        return Verdict(parsed=answer, score=None if item.gold is None else float(answer == item.gold))

    def figures(self, items, verdicts):
        scores = [verdict.score for verdict in verdicts if verdict.score is not None]
        return {"accuracy": Figure(value=sum(scores) / len(scores), chance=0.25, n=len(scores))}


def test_items_without_public_answers_wait_for_the_server(tmp_path):
    toy = Toy()
    items = toy.items(tmp_path, split="val", cache=tmp_path)
    assert toy.status(items[:1]) == "scored" and toy.status(items) == "pending-server"
    assert toy.upload(items, {"1": "2"}) == {}


def test_the_table_shows_percentages_and_chance(tmp_path):
    toy = Toy()
    items = toy.items(tmp_path, split="val", cache=tmp_path)
    figures = toy.figures(items, [toy.verdict(item, "2") for item in items])
    assert toy.table(figures) == [("Toy", "score", "chance", "n"), ("accuracy", "100.0", "25.0", "1")]
