"""Compares a model with an export that lmmkit opens again, and low-rank updates with an adapter of `peft`."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from torch import Tensor

from lmmkit.import_export import adapter_of
from lmmkit.inference.chat_model import ChatModel
from lmmkit.inference.load import load
from lmmkit.progress import moving
from lmmkit.verify_export.comparison import (
    ExportComparison,
    Prompt,
    answer_compared,
    by_shape,
    logits_compared,
    own_logits,
    room_of,
    text_compared,
)
from lmmkit.weights import model_folder
from lmmkit.weights.export.peft_adapter import read_back
from lmmkit.weights.pretrained_folder import CONNECTOR_OF_TILES


def compare_by_lmmkit(
    ours: ChatModel, folder: Path, prompts: list[Prompt], move: Callable[[float], None]
) -> list[ExportComparison]:
    """Compares with the model that lmmkit opens, for formats that transformers cannot open. `move`: shows how many of
    the five parts are done."""
    template = ours.prepared.recipe.model.chat.template
    with moving(move, 1, 3):
        theirs = load(folder, device="cpu", template=None if model_folder.is_ours(folder) else template)
    own, there = (model_folder.unique_tensors(each.objective) for each in (ours, theirs))
    found = [
        ExportComparison("opened by", "lmmkit; transformers does not open this format", None),
        _same_tensors("tensors", own, there),
    ]
    plain = not any(views is None for _, views in ours.views.edits)
    for done, prompt in enumerate(prompts if plain else ()):
        move(3 + 2 * done / len(prompts))
        swap = {ours.tokens.image_token: theirs.tokens.image_token} if prompt.image else {}
        asked = torch.tensor([[swap.get(i, i) for i in prompt.ids]])
        pair = own_logits(ours, prompt, prompt.id_1T), own_logits(theirs, prompt, asked)
        found.append(logits_compared([pair]))
        if by_shape(ours):
            text = theirs.reply(prompt.turns, prompt.image, max_new_tokens=room_of(ours, prompt))
            found.append(text_compared(ours, prompt, text))
            continue
        new = theirs.generate(asked, prompt.pixels, max_new_tokens=room_of(ours, prompt))
        found.append(answer_compared(ours, prompt, new[0].tolist()))
    return found


def compare_adapter(source: Path, folder: Path) -> list[ExportComparison]:
    """Compares an adapter, as an import reads it, with the updates of the model. Its base is not known here."""
    kept, decoder = adapter_of(source, folder)
    factors, connector, scale = read_back(folder, decoder)
    public = dict(CONNECTOR_OF_TILES)
    own = {f"connector.{public[ours]}": tensor for ours, tensor in kept.connector.items()}
    reason = "needs the base: `lmmkit model import --base`"
    return [
        _same_tensors("factors", kept.updates, factors),
        ExportComparison("scale", f"alpha / r is {scale:g}", scale == kept.alpha / kept.r),
        _same_tensors("connector", own, connector) if own or connector else
        ExportComparison("connector", "was not trained: the base has it", None),
        *(ExportComparison(what, reason, None) for what in ("logits", "answers")),
    ]  # fmt: skip


def _same_tensors(what: str, own: Mapping[str, Tensor], there: Mapping[str, Tensor]) -> ExportComparison:
    wrong = sorted(own.keys() ^ there.keys())
    wrong += [
        name for name in sorted(own.keys() & there.keys()) if not torch.equal(own[name].float(), there[name])
    ]
    count = len(own.keys() | there.keys())
    result = f"{len(wrong)} of {count} differ: {', '.join(wrong[:3])}" if wrong else f"{count}, bit for bit"
    return ExportComparison(what, result, not wrong)
