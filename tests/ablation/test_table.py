"""The tables of a grid: at most 80 columns, and what they say."""

from __future__ import annotations

from rich.console import Console

from lmmkit.ablation.arms import read_arms
from lmmkit.ablation.grid import read_grid
from lmmkit.ablation.summary import summarise_grid
from lmmkit.ablation.table import grid_tables, remarks
from lmmkit.commands.support.table_layout import fitted
from tests.conftest import DIRECT, PLAIN
from tests.support.grids import finished, write_grid

GRID = """
base: plain.yaml
root: ROOT
seeds: [1, 2]
measures: {right: answers/accuracy, loss: terms/next_token}
equal: [steps, time]
variants:
  direct: {recipe: direct.yaml}
  a-rather-long-name: {product: {stages.finetune.optim.lr: [1.0e-3, 1.0e-4]}}
"""


def test_the_tables_fit_and_name_what_they_show(tmp_path):
    file = read_grid(write_grid(tmp_path, tmp_path, GRID))
    arms = read_arms(file)
    runs = [
        finished(
            arm.name, seed, {"answers": {"accuracy": 0.5 + 0.01 * seed * number}, "terms": {"next_token": 1.25 + number}},
            equal=equal, cpu=None if arm.name == "direct" else 1234.5,
        )
        for equal in ("steps", "time")
        for number, arm in enumerate(arms)
        for seed in (1, 2)
        if not (arm.name == "direct" and seed == 2 and equal == "time")
    ]  # fmt: skip
    summary = summarise_grid(file, arms, runs)
    summary["arms"][1]["measures"]["right"]["difference"]["p_holm"] = 0.0004
    console = Console(width=80, record=True, soft_wrap=True)
    for table in grid_tables(summary):
        console.print(fitted(table, 80))
    text = console.export_text()
    assert "<.001" in text and "0.000 " not in text
    assert max(map(len, text.splitlines())) <= 80 and "…" not in text
    for words in (
        "equal steps",
        "equal time",
        "answers/accuracy",
        "2,469",
        "?",
        "2 seeds",
        "+1.5 (",
        "1.2500",
        "base",
    ):
        assert words in text, (words, text)
    lines = "\n".join(remarks(summary))
    assert "direct (equal time): 1 of 2 runs are finished" in lines
    assert "one data root" in lines and "same figures" not in lines and "by its recipe" not in lines
    for entry in summary["arms"]:
        entry["steps"] = {"pretrain": 10, "finetune": 4000 if entry["variant"] == "direct" else 2000}
    lines = "\n".join(remarks(summary))
    assert "direct (equal steps): 4,010 steps by its recipe, the base has 2,010." in lines
    assert lines.count("by its recipe") == 1, "at equal time other steps are what was asked for"


def test_two_roots_are_shown_apart_and_equal_results_named(tmp_path):
    text = GRID.replace("equal: [steps, time]\n", "").replace("ROOT", "[/a, /b]")
    file = read_grid(write_grid(tmp_path, tmp_path, text))
    arms = read_arms(file)
    runs = [
        finished(
            arm.name,
            seed,
            {"answers": {"accuracy": 0.5 + 0.1 * (arm.name == "direct") * (root == "/a")}},
            root=root,
        )
        for arm in arms
        for root in ("/a", "/b")
        for seed in (1, 2)
    ]
    lines = "\n".join(remarks(summarise_grid(file, arms, runs)))
    assert "direct: right by root: /a +10.0; /b +0.0" in lines
    assert "a-rather-long-name/0.001: the same figures as base in all runs" in lines


def lines_of(tmp_path, runs, text=GRID, old=()):
    text = text.replace("equal: [steps, time]\n", "")
    for each in old:
        text = text.replace(*each)
    file = read_grid(write_grid(tmp_path, tmp_path, text.replace("ROOT", "/a")))
    summary = summarise_grid(file, read_arms(file), runs)
    titles = [" ".join(str(table.title).split()) for table in grid_tables(summary)]
    return titles, "\n".join(remarks(summary)), summary


def test_what_is_missing_is_named(tmp_path):
    runs = [
        finished(arm, seed, {"answers": {"accuracy": 0.5} if seed == 1 or arm == "base" else {}}, root="/a")
        for arm in ("base", "direct")
        for seed in (1, 2)
    ]
    _, lines, summary = lines_of(
        tmp_path, runs, old=[("root: /a", "root: [/a, /b]"), ("root: ROOT", "root: [/a, /b]")]
    )
    assert summary["roots"] == ["/a", "/b"]
    assert "direct: 2 of 4 runs are finished." in lines, "a root without any run counts"
    assert "direct: 1 of 2 runs have right (answers/accuracy)." in lines
    assert "loss: no run has the figure terms/next_token." in lines and "right: no run" not in lines
    _, lines, summary = lines_of(
        tmp_path, runs, old=[("seeds: [1, 2]", "seeds: [1, 2]\ninterval: questions")]
    )
    assert "right: there are no kept answers of this figure, so its intervals are over seeds." in lines


def test_a_loss_is_no_share_in_a_task_of_any_name(tmp_path):
    rename = ("    terms:   {kind", "    valued:  {kind")
    (tmp_path / "named.yaml").write_text(PLAIN.replace(*rename))
    changes = [("base: plain.yaml", "base: named.yaml"), ("direct.yaml", "other.yaml"), ("terms/", "valued/")]
    (tmp_path / "other.yaml").write_text(DIRECT.replace(*rename))
    runs = [
        finished(arm, seed, {"answers": {"accuracy": 0.5}, "valued": {"next_token": 0.6}}, root="/a")
        for arm in ("base", "direct")
        for seed in (1, 2)
    ]
    titles, _, summary = lines_of(tmp_path, runs, old=changes)
    assert summary["losses"] == ["loss"]
    assert titles == [
        "grid, equal steps: right (answers/accuracy, percent), 2 seeds",
        "grid, equal steps: loss (valued/next_token), 2 seeds",
    ]
