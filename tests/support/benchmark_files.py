"""Small files in the official formats of benchmarks, and what a loader says about them."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from io import BytesIO
from pathlib import Path

import pytest
from PIL import Image

from lmmkit.errors import Problem, UserError
from lmmkit.evaluate.benchmarks.benchmark import Benchmark, Item

POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12345\n"


def image_bytes(colour: int = 0, kind: str = "PNG") -> bytes:
    """Returns a small image file."""
    file = BytesIO()
    Image.new("RGB", (2, 2), (colour, 0, 0)).save(file, kind)
    return file.getvalue()


def write_images(folder: Path, names: Iterable[str]) -> None:
    """Writes small images."""
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(image_bytes())


def write_lines(path: Path, values: Iterable[object]) -> None:
    """Writes one JSON value a line."""
    path.write_text("".join(json.dumps(value) + "\n" for value in values))


def problems_of(call: Callable[[], object]) -> list[Problem]:
    """Returns the problems with which a call is refused."""
    with pytest.raises(UserError) as caught:
        call()
    return list(caught.value.problems)


def figures_of(benchmark: Benchmark, items: list[Item], answers: list[str]):
    """Returns the figures of answers in the order of the items."""
    verdicts = [benchmark.verdict(item, answer) for item, answer in zip(items, answers, strict=True)]
    return benchmark.figures(items, verdicts)
