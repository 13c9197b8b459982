"""Terms and their metrics, averaged over items."""

from __future__ import annotations

from types import SimpleNamespace

from lmmkit.evaluate.task import Figure
from lmmkit.evaluate.terms import Terms, averages, term_sums
from lmmkit.recipe import Task


def model(chances):
    plan = SimpleNamespace(chances=lambda dims: chances, weights={"next_token": 1.0, "order": 0.5})
    return SimpleNamespace(stage="s", objective=None, prepared=SimpleNamespace(plans={"s": plan}, dims=None))


def test_averages_are_sums_over_items():
    sums = [{"next_token": 6.0, "order": 0.0, "orders": 2.0}, {"next_token": 4, "order": 0, "orders": 2},
            {"orders/accuracy": 1.0}, {"orders/accuracy": 0.5}]  # fmt: skip
    assert averages(model({"next_token": 3.5}), sums) == {
        "next_token": Figure(value=1.5, chance=3.5, n=4),
        "orders": Figure(value=1.0, n=2),
        "orders/accuracy": Figure(value=0.5, chance=0.25, n=2),
    }, "a term without items has no figure"


def test_without_micro_batches_there_are_no_figures():
    sums = term_sums(model({}), [])
    assert sums == [{}, {}, {}, {}] and averages(model({}), sums) == {}


def test_lower_losses_are_better():
    plan = model({}).prepared.plans["s"]
    assert Terms("terms", Task(data="x")).figures(plan) == {"next_token": "lower", "order": "lower"}
