"""A chat model with random weights on the scenes, and questions about their images."""

from __future__ import annotations

import json
from pathlib import Path

import torch

from lmmkit import build
from lmmkit.api.sample import Image, Sample, Turn
from lmmkit.inference.chat_model import ChatModel
from lmmkit.plan.prepare import prepare_bare
from lmmkit.recipe import Recipe
from tests.support.hf_weights import scramble


def random_chat_model(recipe: Recipe, seed: int = 0) -> ChatModel:
    """Returns the recipe's model with random weights."""
    prepared, device = prepare_bare(recipe), torch.device("cpu")
    objective = build.build_objective(prepared.recipe, {}, prepared.dims, device, dtype=torch.float32)
    scramble(objective, seed)
    return ChatModel.of(prepared, objective, next(iter(recipe.stages)), device)


def scene_samples(scenes: Path, images: int, each: int) -> list[Sample]:
    """Returns `each` questions of different lengths on each of the first images of a scene set."""
    records = json.loads((scenes / "finetune.json").read_text())
    paths = list(dict.fromkeys(record["image"] for record in records))[:images]
    text = "what colour is the large square in the upper left corner of this image and why"
    words = text.split()
    return [
        Sample(
            key=f"{i}/{j}", images=(Image(str(scenes / path)),),
            turns=(Turn("user", " ".join(words[: 1 + (7 * i + 3 * j) % len(words)]) + f" {j}", images=1),),
        )
        for i, path in enumerate(paths)
        for j in range(each)
    ]  # fmt: skip
