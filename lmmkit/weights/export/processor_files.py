"""Writes the tokenizer and processor files of an export, for transformers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from lmmkit.data.text_tokenizers.hf_tokenizer import TOKENIZER_CONFIG
from lmmkit.runs.files import write_json_atomic
from lmmkit.weights import encoders
from lmmkit.weights.export import chat_template_export
from lmmkit.weights.export.export_model import IMAGE, PAD, Exported, TokenIds

PIECES = {  # with a sentencepiece model
    "tokenizer_class": "LlamaTokenizer", "legacy": False, "add_bos_token": True, "add_eos_token": False,
    "bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>", "pad_token": "<unk>",
}  # fmt: skip


def write(model: Exported, folder: Path, new: TokenIds | None) -> None:
    """Writes the image processor, and the tokenizer if the model has one.

    `new`: the ids for a llava-hf export, which has a processor for text and images; None for original LLaVA.
    """
    image_config = _processor(model)
    write_json_atomic(folder / "preprocessor_config.json", image_config)
    if new is not None:
        strategy = "default" if model.vision_shape.class_token else "full"
        write_json_atomic(folder / "processor_config.json", {
            "processor_class": "LlavaProcessor", "image_token": IMAGE,
            "patch_size": model.vision_shape.patch, "vision_feature_select_strategy": strategy,
            "num_additional_image_tokens": int(model.vision_shape.class_token),
        })  # fmt: skip
    if not model.tokenizer.size:
        return
    files = model.tokenizer.files()
    for name, data in files.items():
        (folder / name).write_bytes(data)
    words: dict[str, Any] = {
        **(json.loads(files[TOKENIZER_CONFIG]) | {"tokenizer_class": "PreTrainedTokenizerFast"}
           if TOKENIZER_CONFIG in files else PIECES),
        "model_max_length": model.shape.context, "padding_side": "left" if new is not None else "right",
    }  # fmt: skip
    if new is not None:
        plain = {"special": True, "lstrip": False, "rstrip": False, "normalized": False, "single_word": False}
        spelt = {new.image: IMAGE}
        if new.pad is not None:
            spelt[new.pad] = model.tokenizer.spelling(new.pad) if new.pad < model.tokenizer.size else PAD
            words["pad_token"] = spelt[new.pad]
        words |= {
            "added_tokens_decoder": {str(i): {"content": word, **plain} for i, word in spelt.items()
                                     if i >= model.tokenizer.size},
            "image_token": IMAGE, "extra_special_tokens": {"image_token": IMAGE},
            "processor_class": "LlavaProcessor",
        }  # fmt: skip
        jinja = chat_template_export.jinja(
            model.template,
            bos=words.get("bos_token", ""),
            prefixed=TOKENIZER_CONFIG not in files,
            system=model.system,
        )
        if jinja is not None:
            (folder / chat_template_export.JINJA_FILE).write_text(jinja, encoding="utf-8")
    (folder / "tokenizer_config.json").write_text(json.dumps(words, indent=2), encoding="utf-8")


def _processor(model: Exported) -> dict[str, Any]:
    image = model.vision_shape.image
    square, short = {"height": image.size, "width": image.size}, {"shortest_edge": image.size}
    geometry: dict[str, Any] = {
        "crop": {"image_processor_type": "CLIPImageProcessor", "size": short},
        "pad": {"image_processor_type": "LlavaImageProcessor", "do_pad": True, "size": short},
        "stretch": {"image_processor_type": "SiglipImageProcessor", "size": square},
    }[model.image_fit]
    if model.image_fit != "stretch":
        geometry |= {"do_center_crop": True, "crop_size": square}
    return geometry | {
        "do_convert_rgb": True, "do_resize": True, "do_rescale": True, "rescale_factor": 1 / 255,
        "do_normalize": True, "image_mean": list(image.mean), "image_std": list(image.std),
        "resample": {name: code for code, name in encoders.RESAMPLE.items()}[image.resample],
    }  # fmt: skip
