"""`attention.jsonl`: how much of the attention of an answer goes to the image, and to which of its patches."""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeGuard

import torch
from torch import Tensor

from lmmkit.api.sample import Sample, Turn
from lmmkit.evaluate.answers.answers_file import drop_torn_line
from lmmkit.evaluate.task import Figure
from lmmkit.inference.chat_model import ChatModel
from lmmkit.inference.image_attention import answer_attention
from lmmkit.progress import counted
from lmmkit.runs.files import read_jsonl

ATTENTION = "attention.jsonl"
FIGURES = {
    "image_attention": ("mass", "even"),
    "deciding_attention": ("deciding_mass", "deciding_even"),
    "object_attention": ("object", "object_even"),
}
"""The figures, each with the fields of a line for its value and its chance."""
MOST = 256  # items, spread evenly over the task: each takes a forward pass with full attention maps


def attention_figure(
    chat_model: ChatModel, answered: Sequence[tuple[Sample, str]], folder: Path
) -> dict[str, Figure]:
    """Writes one line for each of `MOST` answers to questions with an image; returns the means over them.

    `image_attention`: the mass of all rows of an answer on the image. `deciding_attention`: that of the row that
    decides on the first token. `object_attention`: that row's attention to the box of the record, if it has one.
    The chance is that of even attention. `answered`: samples without an answer, and the model's answers. Lines that
    are there already are kept.
    """
    shown = [(sample, text) for sample, text in answered if sample.images and text]
    picked = [shown[i * len(shown) // min(MOST, len(shown))] for i in range(min(MOST, len(shown)))]
    path = folder / ATTENTION
    with path.open("a", encoding="utf-8") as file:
        drop_torn_line(path)
        lines = {line["id"]: line for line in read_jsonl(path) if "deciding_mass" in line}
        for sample, text in counted("measuring attention", picked, unit="answers"):
            if sample.key not in lines:
                chat_model.poll()
                lines[sample.key] = _line(chat_model, sample, text)
                file.write(json.dumps(lines[sample.key]) + "\n")
                file.flush()
    found: list[Mapping] = [lines[sample.key] for sample, _ in picked]
    figures = {}
    for name, (key, even) in FIGURES.items():
        values = [(line[key], line[even]) for line in found if key in line]
        if values:
            mean, chance = (sum(column) / len(values) for column in zip(*values, strict=True))
            figures[name] = Figure(value=mean, chance=chance, n=len(values))
    return figures


def _line(chat_model: ChatModel, sample: Sample, text: str) -> dict:
    answered = replace(sample, turns=(*sample.turns, Turn("assistant", text)))
    found = answer_attention(chat_model, answered)
    deciding = found.deciding
    line = {
        "id": sample.key, "mass": found.mass, "even": found.even, "deciding_mass": deciding.mass,
        "deciding_even": deciding.even,
    }  # fmt: skip
    if found.map_XY is None or deciding.map_XY is None:
        return line
    box = sample.meta.get("box")
    if is_box(box):
        inside_XY = covered_by(box, tuple(found.map_XY.shape))
        line["object"] = float((deciding.map_XY.float().cpu() * inside_XY).sum())
        line["object_even"] = float(inside_XY.sum()) / deciding.rows
    map_XY = found.map_XY.float().cpu()
    peak = float(map_XY.max())
    scaled = (map_XY / max(peak, 1e-30) * 255).round().to(torch.uint8).numpy().tobytes()
    return line | {"grid": list(map_XY.shape), "peak": peak, "map": base64.b64encode(scaled).decode()}


def is_box(box: Any) -> TypeGuard[tuple[float, ...]]:
    """Returns whether it is left, top, right and bottom as shares of an image."""
    if not isinstance(box, tuple) or len(box) != 4 or not all(isinstance(at, int | float) for at in box):
        return False
    left, top, right, bottom = box
    return 0 <= left < right <= 1 and 0 <= top < bottom <= 1


def covered_by(box: tuple[float, ...], grid: tuple[int, ...]) -> Tensor:
    """Returns the share of each patch that a box covers, [rows, columns]."""
    left, top, right, bottom = box
    shares = []
    for n, low, high in zip(grid, (top, left), (bottom, right), strict=True):
        edges = torch.arange(n + 1, dtype=torch.float64)
        inside = edges[1:].clamp(max=high * n) - edges[:-1].clamp(min=low * n)
        shares.append(inside.clamp(min=0))
    return torch.outer(*shares).float()
