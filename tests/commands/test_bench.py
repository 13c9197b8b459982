"""`lmmkit bench`: which backends run, and their figures on a recipe's own batches."""

from __future__ import annotations

import json

from lmmkit import attention_benchmark
from tests.test_cli import recipe, run  # noqa: F401 (a fixture)


def test_backends_says_of_each_whether_it_runs():
    found = json.loads(run("bench", "backends", "--json"))
    assert found["cpu"]["float32"] == {
        "xformers": "no kernels for cpu", "flash": "no kernels for cpu", "sdpa": "", "eager": ""
    }  # fmt: skip
    assert "no kernels for" in run("bench", "backends")


def test_kernels_measures_all_that_run_against_float64(recipe, scenes):  # noqa: F811
    found = {e["backend"]: e for e in json.loads(run("bench", "kernels", recipe, "--root", scenes, "--json"))}
    assert found["xformers"]["why_not"] and found["xformers"]["seconds"] is None
    for name in ("sdpa", "eager"):
        assert found[name]["seconds"] > 0 and len(found[name]["error"]) == 3
        assert all(0 < error < 5e-6 for error in found[name]["error"])
    text = run("bench", "kernels", recipe, "--root", scenes)
    assert " rows in 1 micro-batch," in " ".join(text.split())
    assert "sdpa" in text and "xformers left out: no kernels for cpu" in text


def test_a_map_that_is_too_large_is_left_out_with_its_size(recipe, scenes, monkeypatch):  # noqa: F811
    monkeypatch.setattr(attention_benchmark, "MOST_MAP", 1)
    text = run("bench", "kernels", recipe, "--root", scenes, "--stage", "finetune")
    assert "eager left out: its map of" in text


def test_an_unknown_stage_is_reported(recipe, scenes):  # noqa: F811
    text = run("bench", "kernels", recipe, "--root", scenes, "--stage", "nonsense", code=2)
    assert "bench/unknown-stage" in text and "pretrain" in text
