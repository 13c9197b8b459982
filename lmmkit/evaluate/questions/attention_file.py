"""`attention.jsonl`: how much of the attention of an answer goes to the image, and to which of its patches."""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import torch

from lmmkit.api.sample import Sample, Turn, View
from lmmkit.data.packing import LaidOut, read_images
from lmmkit.evaluate.answers.answers_file import drop_torn_line
from lmmkit.evaluate.task import Figure
from lmmkit.inference.chat_model import ChatModel
from lmmkit.inference.image_attention import image_attention
from lmmkit.progress import counted
from lmmkit.runs.files import read_jsonl

ATTENTION = "attention.jsonl"
MOST = 256  # items, spread evenly over the task: each takes a forward pass with full attention maps


def attention_figure(
    chat_model: ChatModel, answered: Sequence[tuple[Sample, str]], folder: Path
) -> dict[str, Figure]:
    """Writes one line for each of `MOST` answers to questions with an image; returns the mean mass.

    `answered`: samples without an answer, and the model's answers. Its chance is the mass of even attention. Lines
    that are there already are kept.
    """
    shown = [(sample, text) for sample, text in answered if sample.images and text]
    picked = [shown[i * len(shown) // min(MOST, len(shown))] for i in range(min(MOST, len(shown)))]
    path = folder / ATTENTION
    with path.open("a", encoding="utf-8") as file:
        drop_torn_line(path)
        lines = {line["id"]: line for line in read_jsonl(path)}
        for sample, text in counted("measuring attention", picked, unit="answers"):
            if sample.key not in lines:
                chat_model.poll()
                lines[sample.key] = _line(chat_model, sample, text)
                file.write(json.dumps(lines[sample.key]) + "\n")
                file.flush()
    found: list[Mapping] = [lines[sample.key] for sample, _ in picked]
    if not found:
        return {}
    mass, even = (sum(line[key] for line in found) / len(found) for key in ("mass", "even"))
    return {"image_attention": Figure(value=mass, chance=even, n=len(found))}


@torch.no_grad()
def _line(chat_model: ChatModel, sample: Sample, text: str) -> dict:
    view = View(sample=replace(sample, turns=(*sample.turns, Turn("assistant", text))), supervision="train")
    laid_out = chat_model.packer.sized([LaidOut(view, chat_model.views.lay_out(view))])
    found = image_attention(
        chat_model.objective, chat_model.packer, laid_out, read_images([laid_out], chat_model.reader),
        chat_model.device,
    )  # fmt: skip
    line = {"id": sample.key, "mass": found.mass, "even": found.even}
    if found.map_XY is None:
        return line
    map_XY = found.map_XY.float().cpu()
    peak = float(map_XY.max())
    scaled = (map_XY / max(peak, 1e-30) * 255).round().to(torch.uint8).numpy().tobytes()
    return line | {"grid": list(map_XY.shape), "peak": peak, "map": base64.b64encode(scaled).decode()}
