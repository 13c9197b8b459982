"""Helpers to write tiny official files of benchmarks, and to score answers with them."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import pytest

from lmmkit.errors import Problem, UserError
from lmmkit.evaluate.benchmarks.benchmark import Benchmark, Item
from lmmkit.evaluate.task import Figure

LFS_TEXT = "version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12345\n"
SHORT = "\nAnswer the question using a single word or phrase."


def save(path: Path, value: object) -> Path:
    """Writes a JSON file, with its folders."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value), encoding="utf-8")
    return path


def touch_images(folder: Path, names: Iterable[str]) -> None:
    """Writes files in the place of images, which loaders do not decode."""
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(b"\xff\xd8 image")


def load_items(benchmark: Benchmark, folder: Path, split: str | None = None) -> Sequence[Item]:
    """Returns the items of a split, or of the first."""
    return benchmark.items(folder, split=split or benchmark.splits[0], cache=folder / "cache")


def refused(call: Callable[[], object]) -> list[Problem]:
    """Returns the problems with which a call is refused."""
    with pytest.raises(UserError) as caught:
        call()
    return list(caught.value.problems)


def codes(problems: Iterable[Problem]) -> list[str]:
    """Returns the codes without their area."""
    return [problem.code.removeprefix("benchmarks/") for problem in problems]


def scored(benchmark: Benchmark, items: Sequence[Item], answers: Sequence[str]) -> dict[str, Figure]:
    """Returns the figures of answers in the order of the items."""
    verdicts = [benchmark.verdict(item, answer) for item, answer in zip(items, answers, strict=True)]
    return benchmark.figures(items, verdicts)
