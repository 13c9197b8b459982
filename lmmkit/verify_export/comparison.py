"""Compares what all libraries give that open an export: logits, ids and answers to a few prompts."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import torch
from torch import Tensor

from lmmkit.api.layout import row_count
from lmmkit.api.sample import Image, Sample, Turn, View
from lmmkit.data.image_files.image_file import image_size
from lmmkit.data.images import normalise, read_image
from lmmkit.inference.chat_model import ChatModel

NEW_TOKENS = 24  # of an answer, if the context has room
LARGEST_LOGIT_ERROR = 1e-4  # relative to the largest logit
QUESTIONS = ("What is shown in the image?", "Name two colours and 17 numbers.")


@dataclass(frozen=True)
class ExportComparison:
    """Describes one comparison. `equal` is None if it was not made; `result` gives the reason."""

    what: str
    result: str
    equal: bool | None


@dataclass(frozen=True)
class Prompt:
    """Holds a question as both models get it: its view, image file, ids with one for each image row, pixels, and the
    height and width of an image that has rows by its shape."""

    view: View
    image: str | None
    ids: list[int]
    pixels: Tensor | None
    size: tuple[int, int] | None

    @property
    def turns(self) -> tuple[Turn, ...]:
        """Returns its turns."""
        return self.view.sample.turns

    @property
    def id_1T(self) -> Tensor:
        """Returns the ids as a batch of one."""
        return torch.tensor([self.ids])

    @property
    def images(self) -> dict[str, Tensor]:
        """Returns the image as transformers' models get it; empty without one."""
        pixels = {} if self.pixels is None else {"pixel_values": self.pixels}
        return pixels if self.size is None else pixels | {"image_sizes": torch.tensor([self.size])}


def prompts_of(ours: ChatModel, folder: Path) -> Iterator[Prompt]:
    """Yields a prompt with an image of noise, and one of text alone; none without a tokenizer."""
    if not ours.prepared.tokenizer.size:
        return
    noise = np.random.default_rng(0).integers(0, 256, (41, 50, 3), dtype=np.uint8)
    PIL.Image.fromarray(noise).resize((200, 164)).save(folder / "noise.png")
    chat, spec = ours.prepared.recipe.model.chat, ours.prepared.dims.image
    for text, image in zip(QUESTIONS, (str(folder / "noise.png"), None), strict=True):
        if image and not ours.prepared.image_rows:
            continue
        turns = (Turn("user", text, images=int(image is not None)),)
        sample = Sample(
            key="verify", turns=turns, images=(Image(image),) if image else (), template=chat.template,
            image_fit=chat.image_fit,
        )  # fmt: skip
        layout = ours.views.prompt(view := View(sample=sample))
        marker = -1 if ours.tokens.image_token is None else ours.tokens.image_token
        ids = [i for span in layout for i in (span.ids or [marker] * span.n)]
        pixels = normalise(read_image(image, spec, chat.image_fit), spec)[None] if image else None
        size = image_size(Image(image)) if image and by_shape(ours) else None
        if row_count(layout) < ours.views.context:
            yield Prompt(view, image, ids, pixels, size)


def room_of(ours: ChatModel, prompt: Prompt) -> int:
    return min(NEW_TOKENS, ours.views.context - len(prompt.ids))


def own_logits(ours: ChatModel, prompt: Prompt, id_1T: Tensor) -> Tensor:
    """Returns the logits of ids, or of the prompt's view if ids and pixels do not say how its image is cut."""
    if by_shape(ours):
        return ours.prompt_logits([prompt.view])[0][None]
    return ours.logits(id_1T, prompt.pixels)


def by_shape(model: ChatModel) -> bool:
    """Returns whether images have rows by their shape: then ids and pixels do not say how an image is cut."""
    return not isinstance(model.prepared.recipe.model.chat.image_fit, str)


def logits_compared(pairs: list[tuple[Tensor, Tensor]]) -> ExportComparison:
    error = max(float((ours - theirs[..., : ours.shape[-1]]).abs().max()) for ours, theirs in pairs)
    size = max(float(ours.abs().max()) for ours, _ in pairs)
    result = f"differ by at most {error:.1e} of {size:.1e}"
    return ExportComparison("logits", result, error <= LARGEST_LOGIT_ERROR * size)


def same_ids(what: str, pairs: list[tuple[list[int], Any]]) -> ExportComparison:
    for ours, theirs in pairs:
        theirs = [int(i) for i in theirs]
        if ours != theirs:
            at = next((i for i, (a, b) in enumerate(zip(ours, theirs, strict=False)) if a != b), len(ours))
            result = f"from {at} on: ours {ours[at : at + 2]}, theirs {theirs[at : at + 2]}"
            return ExportComparison(what, result, False)
    return ExportComparison(what, f"{sum(len(ours) for ours, _ in pairs)} ids", True)


def answer_compared(ours: ChatModel, prompt: Prompt, their_ids: list[int]) -> ExportComparison:
    """Compares the ids and the text of our greedy answer with those of `their_ids`."""
    room, tokenizer = room_of(ours, prompt), ours.prepared.tokenizer
    ends = ours.tokens.eos
    text = tokenizer.decode([i for i in their_ids if i not in ends]).strip()
    if by_shape(ours):
        return text_compared(ours, prompt, text)
    what = answer_to(prompt)
    own_ids = ours.generate(prompt.id_1T, prompt.pixels, max_new_tokens=room)[0].tolist()
    if own_ids != their_ids:
        return same_ids(what, [(own_ids, their_ids)])
    same = ours.reply(prompt.turns, prompt.image, max_new_tokens=room) == text
    return ExportComparison(what, f"{len(their_ids)} ids, {'and' if same else 'but not'} the text", same)


def text_compared(ours: ChatModel, prompt: Prompt, text: str) -> ExportComparison:
    """Compares the text of our greedy answer: all that is given of a model whose prompts are no ids."""
    same = ours.reply(prompt.turns, prompt.image, max_new_tokens=room_of(ours, prompt)) == text
    return ExportComparison(answer_to(prompt), f"{'the same' if same else 'another'} text", same)


def answer_to(prompt: Prompt) -> str:
    return "answer to an image" if prompt.image else "answer to a text"
