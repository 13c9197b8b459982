"""Every benchmark is listed under its name and says what a reader needs."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

import lmmkit.evaluate.benchmarks as package
from lmmkit.errors import UserError
from lmmkit.evaluate.benchmarks.names import BENCHMARKS


def test_every_file_with_a_benchmark_is_listed():
    files = {path.stem for path in Path(package.__path__[0]).glob("*.py")} - {
        "__init__",
        "benchmark",
        "names",
    }
    assert {benchmark.__module__.rpartition(".")[2] for benchmark in BENCHMARKS.values()} == files


@pytest.mark.parametrize("name", BENCHMARKS)
def test_a_benchmark_is_complete(name, tmp_path):
    benchmark = BENCHMARKS[name]()
    assert benchmark.name == name and benchmark.title and benchmark.headline and benchmark.splits
    assert benchmark.max_new_tokens in (128, 1024)
    assert all(caveat.endswith(".") for caveat in benchmark.caveats)
    with pytest.raises(UserError):
        benchmark.items(tmp_path / "none", split="no such split", cache=tmp_path)
    with pytest.raises(UserError):
        benchmark.items(tmp_path / "none", split=benchmark.splits[0], cache=tmp_path)


def test_the_documentation_has_a_section_for_each_benchmark():
    page = (Path(package.__path__[0]).parents[2] / "docs" / "benchmarks.md").read_text()
    sections = re.findall(r"^## `([\w-]+)`", page, re.M)
    assert sections == sorted(BENCHMARKS)
