"""Compares a model with its llava-hf or llava-next export, which transformers opens."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import PIL.Image
import torch
from torch import Tensor

from lmmkit import build
from lmmkit.data.chat_templates import first_id
from lmmkit.errors import MachineError
from lmmkit.errors.weights import NO_TRANSFORMERS
from lmmkit.import_export import Format
from lmmkit.inference.chat_model import ChatModel
from lmmkit.memory_faults import is_out_of_memory
from lmmkit.progress import counted, moving, weighed
from lmmkit.verify_export.comparison import (
    ExportComparison,
    Prompt,
    answer_compared,
    answer_to,
    logits_compared,
    own_logits,
    room_of,
    same_ids,
)
from lmmkit.weights import model_folder
from lmmkit.weights.detect import open_pretrained
from lmmkit.weights.export.llava_folders import GROWING, common_tensors

OLDEST = 5  # the first version of transformers that opens what lmmkit writes
LARGEST_PIXEL_ERROR = 1.0  # grey levels of 256
BY_TRANSFORMERS = ("llava-hf", "llava-next")  # the formats that transformers opens
BARE = "USER: 12 blue boxes"


def require_transformers(kind: Format) -> None:
    """Raises `MachineError` if an export of this format cannot be verified without an absent package."""
    if kind not in BY_TRANSFORMERS:
        return
    try:
        found = version("transformers")
    except PackageNotFoundError:
        raise MachineError(NO_TRANSFORMERS.at("--verify", got="no package `transformers`")) from None
    if int(found.split(".")[0]) < OLDEST:
        raise MachineError(NO_TRANSFORMERS.at("--verify", got=f"transformers {found}"))


def compare_by_transformers(
    ours: ChatModel, source: Path, folder: Path, kept: torch.dtype, prompts: list[Prompt],
    move: Callable[[float], None],
) -> list[ExportComparison]:  # fmt: skip
    """Compares with the model that transformers opens. `move`: shows how many of the five parts are done."""
    import transformers

    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    loaded: Any = transformers.AutoModelForImageTextToText.from_pretrained(
        folder, dtype="auto", output_loading_info=True
    )
    theirs, info = loaded
    move(2)
    with moving(move, 2, 3):
        found = [_tensors(ours, source, folder, kept, theirs.state_dict(), info)]
    theirs = theirs.float().eval()
    if not prompts:
        reason = "no tokenizer, or too short a context"
        return [
            *found,
            *(ExportComparison(what, reason, None) for what in ("logits", "prompt ids", "answers")),
        ]
    processor = transformers.AutoProcessor.from_pretrained(folder, backend="pil")
    logits = [(own_logits(ours, p, p.id_1T), _logits(theirs, p)) for p in prompts]
    found += [logits_compared(logits), _pixels(ours, processor, prompts), *_ids(ours, processor, prompts)]
    move(4)
    with moving(move, 4, 5):
        for prompt in counted("comparing answers", prompts, unit="answers"):
            try:
                ids = _generated(ours, theirs, processor, prompt)
            except (RuntimeError, ValueError) as error:  # files that contradict each other
                if is_out_of_memory(error):
                    raise
                reason = str(error).partition("\n")[0]
                found.append(ExportComparison(answer_to(prompt), f"transformers: {reason}", False))
            else:
                found.append(answer_compared(ours, prompt, ids))
    return found


@torch.no_grad()
def _logits(theirs: Any, prompt: Prompt) -> Tensor:
    return theirs(input_ids=prompt.id_1T, **prompt.images).logits


def _tensors(
    ours: ChatModel, source: Path, folder: Path, kept: torch.dtype, state: Mapping[str, Tensor],
    info: Mapping[str, Any],
) -> ExportComparison:  # fmt: skip
    """Compares every tensor in transformers' memory with ours, and what it says about loading."""
    own = model_folder.carried_of(source) | common_tensors(**build.modules(ours.objective))
    own.setdefault("text.lm_head.weight", own["text.model.embed_tokens.weight"])
    place = open_pretrained(folder).place
    there = {place(name): tensor for name, tensor in state.items()}
    identity = {"vision.post_layernorm.weight", "vision.post_layernorm.bias"}  # after the layer that is read
    wrong = [f"{kind} {name}" for kind, names in info.items() if kind.endswith("keys") for name in names]
    wrong += [f"{name} is only in one" for name in sorted((own.keys() ^ there.keys()) - identity)]
    both = sorted(own.keys() & there.keys())
    for name in weighed("comparing tensors", both, lambda name: own[name].nbytes):
        tensor = there[name]
        tensor = tensor[: len(own[name])] if name in GROWING else tensor
        if tensor.dtype != kept or not torch.equal(tensor.float(), own[name].to(kept).float()):
            wrong.append(f"{name} differs")
    count = len(own.keys() | there.keys())
    if wrong:
        return ExportComparison("tensors", f"{len(wrong)} of {count}: {', '.join(wrong[:3])}", False)
    return ExportComparison("tensors", f"{count} in {str(kept).removeprefix('torch.')}, bit for bit", True)


def _pixels(ours: ChatModel, processor: Any, prompts: list[Prompt]) -> ExportComparison:
    std, levels = torch.tensor(ours.prepared.dims.image.std)[:, None, None], 0.0
    for prompt in prompts:
        if prompt.image is not None and prompt.pixels is not None:
            with PIL.Image.open(prompt.image) as image:
                theirs = processor.image_processor(image.convert("RGB"), return_tensors="pt")["pixel_values"]
            if theirs.shape != prompt.pixels.shape:
                got = f"have shapes {list(prompt.pixels.shape)} and {list(theirs.shape)}"
                return ExportComparison("pixels", got, False)
            levels = max(levels, float(((theirs - prompt.pixels) * std).abs().max()) * 255)
    if not any(prompt.image for prompt in prompts):
        return ExportComparison("pixels", "too short a context for an image", None)
    result = f"differ by at most {levels:.2g} of 256 grey levels"
    return ExportComparison("pixels", result, levels <= LARGEST_PIXEL_ERROR)


def _messages(prompt: Prompt) -> list[dict[str, Any]]:
    image = [{"type": "image", "path": prompt.image}] if prompt.image else []
    return [{"role": "user", "content": [*image, {"type": "text", "text": prompt.turns[0].text}]}]


def _ids(ours: ChatModel, processor: Any, prompts: list[Prompt]) -> list[ExportComparison]:
    """Compares the ids of the prompts, made in each way that transformers has."""
    tokenizer, template = ours.prepared.tokenizer, ours.prepared.recipe.model.chat.template
    first = first_id(template, tokenizer)
    bare = [*([] if first is None else [first]), *tokenizer.encode(BARE)]
    found = [same_ids("ids, bare prompt", [(bare, processor(text=BARE).input_ids[0])])]
    if processor.chat_template is None:
        return [*found, ExportComparison("ids, template", f"`{template}` has no chat template", None)]
    at_once, texts = [], {"ids, template's text": processor, "ids, tokenizer's text": processor.tokenizer}
    for prompt in prompts:
        once = processor.apply_chat_template(_messages(prompt), add_generation_prompt=True, tokenize=True)
        at_once.append((prompt.ids, once[0]))
    for what, writer in texts.items():
        found.append(same_ids(what, [(p.ids, _by_text(writer, processor, p)) for p in prompts]))
    found.append(same_ids("ids, template at once", at_once))
    return [*found, *(_by_tokenizer(processor.tokenizer, p, first) for p in prompts if p.image is None)]


def _by_text(writer: Any, processor: Any, prompt: Prompt) -> list[int]:
    """Returns the ids that the processor makes of the text that `writer` makes of the messages."""
    text = writer.apply_chat_template(_messages(prompt), add_generation_prompt=True, tokenize=False)
    image = PIL.Image.open(prompt.image).convert("RGB") if prompt.image else None
    return processor(text=text, images=image).input_ids[0]


def _by_tokenizer(tokenizer: Any, prompt: Prompt, first: int | None) -> ExportComparison:
    """Compares the ids that the tokenizer makes of the messages at once. Transformers adds no first token there."""
    what, options = "ids, tokenizer at once", {"add_generation_prompt": True, "return_dict": False}
    ids = [int(i) for i in tokenizer.apply_chat_template(_messages(prompt), **options)]
    if first is None or ids != prompt.ids[1:]:
        return same_ids(what, [(prompt.ids, ids)])
    reason = f"lacks `{tokenizer.bos_token}`, as with llava-hf; use its text"
    return ExportComparison(what, reason, None)


def _generated(ours: ChatModel, theirs: Any, processor: Any, prompt: Prompt) -> list[int]:
    """Returns the ids that transformers generates from the messages, or from our ids without a template."""
    if processor.chat_template is None:
        inputs = {"input_ids": prompt.id_1T, "attention_mask": torch.ones_like(prompt.id_1T)}
        inputs |= prompt.images
    else:
        inputs = processor.apply_chat_template(
            _messages(prompt),
            add_generation_prompt=True,
            tokenize=True,
            return_dict=True,
            return_tensors="pt",
        )
    new = theirs.generate(**inputs, max_new_tokens=room_of(ours, prompt), do_sample=False)
    return new[0, inputs["input_ids"].shape[1] :].tolist()
