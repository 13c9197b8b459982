"""Finds the folders of answers below a run or a folder of results, and the folder of images from tables."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from lmmkit.data.sources.index_cache import cache_folder
from lmmkit.errors import UserError, did_you_mean
from lmmkit.errors.answers import NO_ANSWERS
from lmmkit.errors.benchmarks import OFFICIAL_VERSION
from lmmkit.evaluate.answers.answers_file import NAME
from lmmkit.evaluate.benchmarks.benchmark import Benchmark, Item
from lmmkit.recipe import read_recipe
from lmmkit.runs.run_folder import RunFolder


def task_folders(path: Path) -> dict[str, Path]:
    """Returns the folder of each task's answers.

    `path`: a run (of each task the latest stage with answers), a folder of results, or the folder of one task.
    """
    if (path / NAME).is_file():
        return {path.name: path}
    run = RunFolder(path)
    if not run.is_run:
        return _below(path)
    found: dict[str, Path] = {}
    for stage in read_recipe(run.resolved).stages:
        for name in (stage, f"{stage}-best"):
            found |= _below(run.answers(name, ""))
    return found


def task_folder(path: Path, task: str) -> Path:
    """Returns the folder of one task's answers. Raises `UserError` if there are none."""
    folders = task_folders(path)
    if task not in folders:
        nearest = did_you_mean(task, folders) if folders else "Run `lmmkit eval` first."
        raise UserError(NO_ANSWERS.at(str(path), got=f"no answers of `{task}`", nearest=nearest))
    return folders[task]


def benchmark_cache(benchmark: str) -> Path:
    """Returns the folder where the images inside a benchmark's tables are written."""
    return cache_folder().parent / "benchmarks" / benchmark


def official_items(benchmark: Benchmark, folder: Path, split: str) -> Sequence[Item]:
    """Returns the items of a split, at least one. Raises `UserError` for files that are not as published."""
    items = benchmark.items(folder, split=split, cache=benchmark_cache(benchmark.name))
    if not items:
        got, expected = f"no question of split `{split}`", "the questions of the split"
        raise UserError(OFFICIAL_VERSION.at(str(folder), got=got, expected=expected))
    return items


def _below(path: Path) -> dict[str, Path]:
    return {file.parent.name: file.parent for file in sorted(path.glob(f"*/{NAME}"))}
