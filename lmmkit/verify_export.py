"""Opens an export again and compares it with the model: tensors, logits, pixels, prompts and greedy answers.

A llava-hf or llava-next folder is opened by transformers, which must be installed; the formats that transformers
cannot open are opened by lmmkit. Both models are in memory at once, in float32.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import torch
from torch import Tensor

from lmmkit import build
from lmmkit.api.layout import row_count
from lmmkit.api.sample import Image, Sample, Turn, View
from lmmkit.data.chat_templates import first_id
from lmmkit.data.image_files.image_file import image_size
from lmmkit.data.images import normalise, read_image
from lmmkit.errors import MachineError
from lmmkit.errors.weights import EXPORT_DIFFERS, NO_TRANSFORMERS
from lmmkit.import_export import Format, adapter_of
from lmmkit.inference.chat_model import ChatModel
from lmmkit.inference.load import find_model_folder, load
from lmmkit.memory_faults import is_out_of_memory
from lmmkit.progress import counted, moving, weighed, working
from lmmkit.weights import model_folder
from lmmkit.weights.detect import open_pretrained
from lmmkit.weights.export.llava_folders import GROWING, common_tensors
from lmmkit.weights.export.peft_adapter import read_back
from lmmkit.weights.pretrained_folder import CONNECTOR_OF_TILES

OLDEST = 5  # the first version of transformers that opens what lmmkit writes
NEW_TOKENS = 24  # of an answer, if the context has room
LARGEST_LOGIT_ERROR = 1e-4  # relative to the largest logit
LARGEST_PIXEL_ERROR = 1.0  # grey levels of 256
QUESTIONS = ("What is shown in the image?", "Name two colours and 17 numbers.")
BY_TRANSFORMERS = ("llava-hf", "llava-next")  # the formats that transformers opens
BARE = "USER: 12 blue boxes"


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


def verify_export(
    path: Path, folder: Path, kind: Format, *, dtype: torch.dtype | None = None
) -> list[ExportComparison]:
    """Returns all comparisons of a model with its export. `path`, `kind`, `dtype`: as it was exported."""
    require_transformers(kind)
    source = find_model_folder(path)
    if kind == "peft":
        return _adapter(source, folder)
    with tempfile.TemporaryDirectory() as aside, working("comparing the export with the model", 5) as move:
        with moving(move, 0, 1):
            ours = load(source, device="cpu")
        kept = dtype or model_folder.dtype_of(source)
        for tensor in model_folder.unique_tensors(ours.objective).values():
            tensor.copy_(tensor.to(kept))
        prompts = list(prompts_of(ours, Path(aside)))
        if kind in BY_TRANSFORMERS:
            return _by_transformers(ours, source, folder, kept, prompts, move)
        return _by_lmmkit(ours, folder, prompts, move)


def require_equal(folder: Path, found: list[ExportComparison]) -> None:
    """Raises `MachineError` if a comparison found a difference."""
    differing = [each for each in found if each.equal is False]
    if differing:
        raise MachineError(EXPORT_DIFFERS.at(f"{folder}: {each.what}", got=each.result) for each in differing)


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
        size = image_size(Image(image)) if image and _by_shape(ours) else None
        if row_count(layout) < ours.views.context:
            yield Prompt(view, image, ids, pixels, size)


def _room(ours: ChatModel, prompt: Prompt) -> int:
    return min(NEW_TOKENS, ours.views.context - len(prompt.ids))


# ------------------------------------------------------------------ by transformers


def _by_transformers(
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
    logits = [(_own_logits(ours, p, p.id_1T), _logits(theirs, p)) for p in prompts]
    found += [_logits_compared(logits), _pixels(ours, processor, prompts), *_ids(ours, processor, prompts)]
    move(4)
    with moving(move, 4, 5):
        for prompt in counted("comparing answers", prompts, unit="answers"):
            try:
                ids = _generated(ours, theirs, processor, prompt)
            except (RuntimeError, ValueError) as error:  # files that contradict each other
                if is_out_of_memory(error):
                    raise
                reason = str(error).partition("\n")[0]
                found.append(ExportComparison(_answer_to(prompt), f"transformers: {reason}", False))
            else:
                found.append(_answer(ours, prompt, ids))
    return found


@torch.no_grad()
def _logits(theirs: Any, prompt: Prompt) -> Tensor:
    return theirs(input_ids=prompt.id_1T, **prompt.images).logits


def _own_logits(ours: ChatModel, prompt: Prompt, id_1T: Tensor) -> Tensor:
    """Returns the logits of ids, or of the prompt's view if ids and pixels do not say how its image is cut."""
    if _by_shape(ours):
        return ours.prompt_logits([prompt.view])[0][None]
    return ours.logits(id_1T, prompt.pixels)


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


def _logits_compared(pairs: list[tuple[Tensor, Tensor]]) -> ExportComparison:
    error = max(float((ours - theirs[..., : ours.shape[-1]]).abs().max()) for ours, theirs in pairs)
    size = max(float(ours.abs().max()) for ours, _ in pairs)
    result = f"differ by at most {error:.1e} of {size:.1e}"
    return ExportComparison("logits", result, error <= LARGEST_LOGIT_ERROR * size)


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
    found = [_same_ids("ids, bare prompt", [(bare, processor(text=BARE).input_ids[0])])]
    if processor.chat_template is None:
        return [*found, ExportComparison("ids, template", f"`{template}` has no chat template", None)]
    at_once, texts = [], {"ids, template's text": processor, "ids, tokenizer's text": processor.tokenizer}
    for prompt in prompts:
        once = processor.apply_chat_template(_messages(prompt), add_generation_prompt=True, tokenize=True)
        at_once.append((prompt.ids, once[0]))
    for what, writer in texts.items():
        found.append(_same_ids(what, [(p.ids, _by_text(writer, processor, p)) for p in prompts]))
    found.append(_same_ids("ids, template at once", at_once))
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
        return _same_ids(what, [(prompt.ids, ids)])
    reason = f"lacks `{tokenizer.bos_token}`, as with llava-hf; use its text"
    return ExportComparison(what, reason, None)


def _same_ids(what: str, pairs: list[tuple[list[int], Any]]) -> ExportComparison:
    for ours, theirs in pairs:
        theirs = [int(i) for i in theirs]
        if ours != theirs:
            at = next((i for i, (a, b) in enumerate(zip(ours, theirs, strict=False)) if a != b), len(ours))
            result = f"from {at} on: ours {ours[at : at + 2]}, theirs {theirs[at : at + 2]}"
            return ExportComparison(what, result, False)
    return ExportComparison(what, f"{sum(len(ours) for ours, _ in pairs)} ids", True)


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
    new = theirs.generate(**inputs, max_new_tokens=_room(ours, prompt), do_sample=False)
    return new[0, inputs["input_ids"].shape[1] :].tolist()


def _answer(ours: ChatModel, prompt: Prompt, their_ids: list[int]) -> ExportComparison:
    """Compares the ids and the text of our greedy answer with those of `their_ids`."""
    room, tokenizer = _room(ours, prompt), ours.prepared.tokenizer
    ends = ours.tokens.eos
    text = tokenizer.decode([i for i in their_ids if i not in ends]).strip()
    if _by_shape(ours):
        return _text(ours, prompt, text)
    what = _answer_to(prompt)
    own_ids = ours.generate(prompt.id_1T, prompt.pixels, max_new_tokens=room)[0].tolist()
    if own_ids != their_ids:
        return _same_ids(what, [(own_ids, their_ids)])
    same = ours.reply(prompt.turns, prompt.image, max_new_tokens=room) == text
    return ExportComparison(what, f"{len(their_ids)} ids, {'and' if same else 'but not'} the text", same)


def _text(ours: ChatModel, prompt: Prompt, text: str) -> ExportComparison:
    """Compares the text of our greedy answer: all that is given of a model whose prompts are no ids."""
    same = ours.reply(prompt.turns, prompt.image, max_new_tokens=_room(ours, prompt)) == text
    return ExportComparison(_answer_to(prompt), f"{'the same' if same else 'another'} text", same)


def _answer_to(prompt: Prompt) -> str:
    return "answer to an image" if prompt.image else "answer to a text"


def _by_shape(model: ChatModel) -> bool:
    """Returns whether images have rows by their shape: then ids and pixels do not say how an image is cut."""
    return not isinstance(model.prepared.recipe.model.chat.image_fit, str)


# ------------------------------------------------------------------ by lmmkit


def _by_lmmkit(
    ours: ChatModel, folder: Path, prompts: list[Prompt], move: Callable[[float], None]
) -> list[ExportComparison]:
    """Compares with the model that lmmkit opens, for formats that transformers cannot open. `move`: as above."""
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
        pair = _own_logits(ours, prompt, prompt.id_1T), _own_logits(theirs, prompt, asked)
        found.append(_logits_compared([pair]))
        if _by_shape(ours):
            text = theirs.reply(prompt.turns, prompt.image, max_new_tokens=_room(ours, prompt))
            found.append(_text(ours, prompt, text))
            continue
        new = theirs.generate(asked, prompt.pixels, max_new_tokens=_room(ours, prompt))
        found.append(_answer(ours, prompt, new[0].tolist()))
    return found


def _adapter(source: Path, folder: Path) -> list[ExportComparison]:
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
