"""`lmmkit check`: plan problems and missing data together, and the place of `--root`."""

from __future__ import annotations

import pytest
from rich.console import Console

from lmmkit.commands import check
from lmmkit.commands.support import common
from tests.conftest import DIRECT, PLAIN
from tests.test_cli import run


@pytest.fixture
def recipe(tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text(DIRECT)
    return path


def test_a_missing_token_strategy_is_reported_together_with_missing_data(recipe, tmp_path, scenes):
    import re

    recipe.write_text(re.sub(r"\n *directed_token: *\{[^}]*\}", "", DIRECT))
    assert recipe.read_text() != DIRECT
    with_data = run("check", recipe, "--root", scenes, code=2)
    without = run("check", recipe, "--root", tmp_path / "nowhere", code=2)
    assert "plan/unprovided-token" in with_data and "plan/unprovided-token" in without
    assert "tokenizer/file" in without and "records/" in without


def test_a_missing_root_names_the_option(recipe, tmp_path):
    text = run("check", recipe, "--root", tmp_path / "nowhere", code=2)
    for code in ("tokenizer/file", "records/no-image-folder"):
        (hint,) = {line for line in text.splitlines() if line.startswith("  hint") and f"[{code}]" in line}
        assert "--root" in hint, hint


def test_a_start_model_that_does_not_exist_is_found_by_check_as_by_train(tmp_path, scenes):
    path = tmp_path / "mine.yaml"
    path.write_text(PLAIN)
    change = f"stages.pretrain.start={tmp_path / 'none'}"
    assert "train/no-start-model" in run("check", path, "--root", scenes, "--set", change, code=2)
    words = ("train", path, "--root", scenes, "--out", tmp_path / "run", "--set", change)
    assert "train/no-start-model" in run(*words, code=2)
    later = "stages.finetune.start=runs/mine/model/pretrain"  # what this recipe's run may write itself
    text = run("check", path, "--root", scenes, "--set", later)
    assert "no problems" in text and "--images reads the header of each" in text


@pytest.mark.parametrize("width", [60, 80, 120])
def test_tables_break_no_word(width, monkeypatch):
    stage = {
        "steps": 5198, "tokens_per_step": 123_456.0, "micro_batches": 12.5, "supervised": 0.123,
        "trainable": 6_738_415_616, "parameters": 7_061_000_000, "hours": 12.345, "devices": 8,
        "bytes": {"weights": 2**35, "gradients": 2**35, "optimizer": 2**36, "activations": 2**34, "all": 144 * 2**30},
    }  # fmt: skip
    console = Console(width=width, record=True, soft_wrap=True, markup=False)
    monkeypatch.setattr(common, "out", console)
    for table in (check._table, lambda stages: check._memory(stages, 400)):
        common.print_table(table({"pretrain": stage, "finetune": stage}))
    text = console.export_text()
    assert "…" not in text and max(map(len, text.splitlines())) <= width
    for word in ("pretrain", "finetune", "144.00", "12.35", "5,198", "123,456", "6,738 /"):
        assert word in text, (width, text)
