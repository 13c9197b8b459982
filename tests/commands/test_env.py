"""`lmmkit env`, `lmmkit --version` and `dir(lmmkit)`."""

from __future__ import annotations

import json
import platform

import torch

import lmmkit
from lmmkit.attention_benchmark import reasons
from tests.test_cli import run


def test_env_prints_what_a_bug_report_needs(monkeypatch):
    monkeypatch.setenv("LMMKIT_ODD", "[bold]value[/]")
    text = run("env")
    for part in (
        lmmkit.__version__,
        torch.__version__.split("+")[0],
        platform.python_version(),
        "xformers",
        "LMMKIT_ODD",
    ):
        assert part in text, part
    assert "[bold]value[/]" in text
    found = json.loads(run("env", "--json"))
    assert found["packages"]["lmmkit"] == lmmkit.__version__ and found["devices"][0].startswith("cpu: ")
    cpu = found["attention"]["cpu"]
    assert cpu.keys() == {"float32", "bfloat16"}
    for dtype, by_name in cpu.items():
        for name, why in reasons(torch.device("cpu"), getattr(torch, dtype)).items():
            assert by_name[name] == (why or "runs")


def test_the_version():
    assert run("--version") == f"lmmkit {lmmkit.__version__}\n"


def test_the_top_level_lists_its_names():
    assert {"Recipe", "load", "read_recipe", "train", "__version__"} <= set(dir(lmmkit))
    assert all(name.startswith("__") or hasattr(lmmkit, name) for name in dir(lmmkit))
