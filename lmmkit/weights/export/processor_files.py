"""Writes the tokenizer and processor files of an export, for transformers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import tokenizers

from lmmkit.api.sample import AnyRes
from lmmkit.data.chat_templates import first_id
from lmmkit.data.text_tokenizers.added_tokens import TOKENIZER_CONFIG, without_gaps
from lmmkit.data.text_tokenizers.choose import TextTokenizer
from lmmkit.data.text_tokenizers.hf_tokenizer import TOKENIZER_JSON
from lmmkit.runs.files import write_json_atomic
from lmmkit.weights import encoders
from lmmkit.weights.export import chat_template_export
from lmmkit.weights.export.export_model import Exported, TokenIds

PIECES = {  # with a sentencepiece model
    "tokenizer_class": "LlamaTokenizer", "legacy": False, "add_eos_token": False, "unk_token": "<unk>",
    "pad_token": "<unk>",
}  # fmt: skip


def write(model: Exported, folder: Path, new: TokenIds | None) -> None:
    """Writes the image processor, and the tokenizer if the model has one.

    `new`: the ids for a llava-hf or llava-next export, which has a processor for text and images; None for original
    LLaVA.
    """
    image_config = _processor(model)
    write_json_atomic(folder / "preprocessor_config.json", image_config)
    if new is not None:
        strategy = "default" if model.vision_shape.class_token else "full"
        write_json_atomic(folder / "processor_config.json", {
            "processor_class": _processor_class(model), "image_token": new.image_word,
            "patch_size": model.vision_shape.patch, "vision_feature_select_strategy": strategy,
            "num_additional_image_tokens": int(model.vision_shape.class_token),
        })  # fmt: skip
    if not model.tokenizer.size:
        return
    tokenizer = model.tokenizer
    first = first_id(model.template, tokenizer)
    words: dict[str, Any] = {
        **_class(tokenizer, first),
        "model_max_length": model.shape.context, "padding_side": "left" if new is not None else "right",
    }  # fmt: skip
    for name, data in tokenizer.files().items():
        if name == TOKENIZER_JSON:
            data = _beginning(data, first, tokenizer.spelling(first) if first is not None else "")
        (folder / name).write_bytes(data)
    named = {}
    if new is not None:
        named = {new.image: new.image_word}
        if new.pad is not None:
            named[new.pad] = words["pad_token"] = new.pad_word
        words |= {
            "image_token": new.image_word, "extra_special_tokens": {"image_token": new.image_word},
            "processor_class": _processor_class(model),
        }  # fmt: skip
        _write_template(model, folder, new.image_word)
    if added := _added(tokenizer, named):
        plain = {"special": True, "lstrip": False, "rstrip": False, "normalized": False, "single_word": False}
        words["added_tokens_decoder"] = {str(i): {"content": word, **plain} for i, word in added.items()}
    (folder / "tokenizer_config.json").write_text(json.dumps(words, indent=2), encoding="utf-8")


def _class(tokenizer: TextTokenizer, first: int | None) -> dict[str, Any]:
    """Returns the class of the tokenizer and the tokens with a role, as keys of tokenizer_config.json."""
    files = tokenizer.files()
    if TOKENIZER_JSON in files:  # the file adds the token that begins a sequence
        return json.loads(files[TOKENIZER_CONFIG]) | {"tokenizer_class": "PreTrainedTokenizerFast"}
    ends = {"bos_token": tokenizer.bos, "eos_token": tokenizer.eos}
    spelt = {key: tokenizer.spelling(token) for key, token in ends.items() if token is not None}
    return PIECES | spelt | {"add_bos_token": first is not None}


def _beginning(data: bytes, first: int | None, word: str) -> bytes:
    """Returns a tokenizer.json that adds the token `first` before a text, or none."""
    text, begin = {"Sequence": {"id": "A", "type_id": 0}}, {"SpecialToken": {"id": word, "type_id": 0}}
    adding = {
        "type": "TemplateProcessing", "single": [begin, text],
        "pair": [begin, text, {"Sequence": {"id": "B", "type_id": 1}}],
        "special_tokens": {word: {"id": word, "ids": [first], "tokens": [word]}},
    }  # fmt: skip
    value = json.loads(data)
    return json.dumps(value | {"post_processor": None if first is None else adding}).encode()


def _added(tokenizer: TextTokenizer, named: dict[int, str]) -> dict[int, str]:
    """Returns the tokens that transformers must add: those of the export, and those beside a sentencepiece
    model. It counts on from the last id, so that ids between them get names too."""
    own = tokenizer.size if TOKENIZER_JSON in tokenizer.files() else tokenizer.text_size
    spelt = {i: tokenizer.spelling(i) for i in range(own, tokenizer.size)} | named
    return without_gaps({i: word for i, word in spelt.items() if i >= own and word}, own)


def _write_template(model: Exported, folder: Path, image: str) -> None:
    """Writes the chat template, if the model's has turns."""
    space = _space(model.tokenizer)
    text = chat_template_export.jinja(model.template, space=space, image=image, system=model.system)
    if text is not None:
        (folder / chat_template_export.JINJA_FILE).write_text(text, encoding="utf-8")


def _space(tokenizer: TextTokenizer) -> str:
    """Returns what to write after a control token for the space piece of a separate text, if there is one."""
    files = tokenizer.files()
    if TOKENIZER_JSON not in files:
        return " "
    inner, control = tokenizers.Tokenizer.from_str(files[TOKENIZER_JSON].decode()), tokenizer.eos
    after = inner.encode(tokenizer.spelling(control) + "a", add_special_tokens=False).ids[1:]
    return "" if after == tokenizer.encode("a") else " "


def _processor_class(model: Exported) -> str:
    return "LlavaNextProcessor" if isinstance(model.image_fit, AnyRes) else "LlavaProcessor"


def pixels_of_grids(model: Exported) -> list[list[int]]:
    """Returns the height and width in pixels of each grid of tiles, as LLaVA-NeXT writes grids."""
    assert isinstance(model.image_fit, AnyRes)
    side = model.vision_shape.image.size
    return [[lines * side, columns * side] for lines, columns in model.image_fit.used]


def _geometry(model: Exported) -> dict[str, Any]:
    """Returns what an image processor does to the size of an image."""
    side = model.vision_shape.image.size
    square, short = {"height": side, "width": side}, {"shortest_edge": side}
    cropped = {"size": short, "do_center_crop": True, "crop_size": square}
    if isinstance(model.image_fit, AnyRes):
        tiled = {"image_processor_type": "LlavaNextImageProcessor", "do_pad": True}
        return tiled | cropped | {"image_grid_pinpoints": pixels_of_grids(model)}
    assert isinstance(model.image_fit, str), "`problems` has refused images that keep their shape"
    return {
        "crop": {"image_processor_type": "CLIPImageProcessor"} | cropped,
        "pad": {"image_processor_type": "LlavaImageProcessor", "do_pad": True} | cropped,
        "stretch": {"image_processor_type": "SiglipImageProcessor", "size": square},
    }[model.image_fit]


def _processor(model: Exported) -> dict[str, Any]:
    image = model.vision_shape.image
    return _geometry(model) | {
        "do_convert_rgb": True, "do_resize": True, "do_rescale": True, "rescale_factor": 1 / 255,
        "do_normalize": True, "image_mean": list(image.mean), "image_std": list(image.std),
        "resample": {name: code for code, name in encoders.RESAMPLE.items()}[image.resample],
    }  # fmt: skip
