"""The scores of generated texts."""

from __future__ import annotations

import json
from types import SimpleNamespace

import numpy as np
import pytest
from lmmkit_shuffle.text_order import TextOrder

from lmmkit.api.sample import Sample, Turn, View
from lmmkit.evaluate.keep import Keep
from lmmkit.evaluate.restore import Restore
from lmmkit.evaluate.task import Figure
from lmmkit.recipe import Task

TEXT_ORDER = TextOrder(name="text_order")
PLAN = SimpleNamespace(tasks=(TEXT_ORDER,))


class StubModel:
    stage = "pretrain"
    prepared = SimpleNamespace(plans={"pretrain": PLAN})
    views = SimpleNamespace(
        of=lambda sample, epoch, among: [
            View(sample=v.sample, name="text_order")
            for v in TEXT_ORDER.views(sample, np.random.default_rng(0))
        ]
    )

    def answer(self, groups, *, max_new_tokens):
        assert max_new_tokens == 5
        assert all(view.sample.turns[-1].role == "user" for (view,) in groups)
        return ["a red cat", "wrong"][: len(groups)]


def test_the_generated_text_is_scored(tmp_path):
    texts = [Sample(key=str(i), turns=(Turn("user", ""), Turn("assistant", "a red cat"))) for i in range(2)]
    task = Restore("restore", Task(data="heldout", max_new_tokens=5))
    assert task.run(StubModel(), texts) == {
        "text_order": Figure(value=0.5, chance=pytest.approx(1 / 6), n=2),
    }
    assert not list(tmp_path.iterdir())
    keep = Keep(folder=tmp_path, model={"checkpoint": "m"})
    assert task.run(StubModel(), texts, keep=keep)["text_order"].n == 2
    found = json.loads((tmp_path / task.facts(keep)["puzzles"]).read_text())["instances"]["text_order"]
    assert [(p["id"], p["predicted"], p["right"]) for p in found["puzzles"]] == [
        ("0", ["a", "red", "cat"], True), ("1", ["wrong"], False),
    ]  # fmt: skip
    assert task.run(StubModel(), []) == {"text_order": Figure(value=0.0, chance=0.0, n=0)}
    assert task.figures(PLAN) == {"text_order": "higher"}
