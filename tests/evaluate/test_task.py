"""A figure as text, and the default table of a task."""

from __future__ import annotations

from lmmkit.evaluate.restore import Restore
from lmmkit.evaluate.task import Figure, percent
from lmmkit.recipe import Task


def test_a_figure_in_percent():
    assert Figure(value=0.7612, low=0.74, high=0.782, n=9).in_percent() == "76.1 (74.0-78.2)"
    assert Figure(value=0.7612, chance=0.5, n=9).in_percent() == "76.1"
    assert percent(0.5) == "50.0" and percent(None) == ""


def test_a_table_has_one_line_for_each_figure():
    figures = {"loss": Figure(value=1.5, n=7), "loss/mass": Figure(value=0.25, chance=0.125, n=7)}
    assert Restore("restore", Task(data="x")).table(figures) == [
        ("figure", "value", "chance", "n"),
        ("loss", "1.5000", "", "7"),
        ("loss/mass", "0.2500", "0.1250", "7"),
    ]
