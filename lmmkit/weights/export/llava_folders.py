"""Exports a model as a llava-hf, llava-next or original LLaVA folder, with tokenizer and processor files."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from lmmkit.api.sample import AnyRes, Native
from lmmkit.data.chat_templates import stop_ids
from lmmkit.errors import Problem, UserError, raise_all
from lmmkit.errors.weights import EXPORT_EXISTS, NOT_LMMKIT, UNSUPPORTED_PART
from lmmkit.model.connectors.mlp import MlpConnector
from lmmkit.model.vision import ViT
from lmmkit.progress import moving, working_bytes
from lmmkit.runs.files import write_json_atomic
from lmmkit.weights import encoders, model_folder, name_maps, tensor_writer
from lmmkit.weights.decoders import LLAMA, ROPE_KEYS
from lmmkit.weights.export import processor_files
from lmmkit.weights.export.export_model import Exported, TokenIds, export_folder, family, new_token_ids
from lmmkit.weights.pretrained_folder import CONNECTOR_OF_TILES

HUB = {
    "connector.newline": "image_newline",
    "vision.": "vision_tower.vision_model.", "connector.": "multi_modal_projector.",
    "text.model.": "language_model.model.", "text.lm_head.": "language_model.lm_head.",
}  # fmt: skip
ORIGINAL = {
    "connector.newline": "model.image_newline",
    "vision.": "model.vision_tower.vision_tower.vision_model.", "connector.linear_1.": "model.mm_projector.0.",
    "connector.linear_2.": "model.mm_projector.2.", "text.model.": "model.", "text.lm_head.": "lm_head.",
}  # fmt: skip
GROWING = ("text.model.embed_tokens.weight", "text.lm_head.weight")  # an export may add matrix rows to these
MAX_FILE_BYTES = 4 << 30  # largest size of one weights file
ARCHITECTURES = {  # of the decoder families that an export can write
    "llama": "LlamaForCausalLM", "mistral": "MistralForCausalLM",
    "qwen2": "Qwen2ForCausalLM", "qwen3": "Qwen3ForCausalLM",
}  # fmt: skip


def problems(model: Exported, folder: Path, kind: str) -> list[Problem]:
    """Returns a problem for each property of the model that the format cannot express."""
    unsupported: list[tuple[str, str]] = []
    if not isinstance(model.vision, ViT) or encoders.family_of(model.vision.shape) is None:
        unsupported.append(("no CLIP or SigLIP encoder", "a CLIP or SigLIP encoder"))
    if family(model) not in ARCHITECTURES:
        unsupported.append((f"a decoder of the {family(model)} family", f"one of {', '.join(ARCHITECTURES)}"))
    if type(model.connector) is not MlpConnector:  # another one may have parameters of the same names
        unsupported.append(("another connector", "an `mlp2x_gelu` connector"))
    elif kind == "llava" and family(model) != "llama":
        unsupported.append((f"a decoder of the {family(model)} family", "a LLaMA decoder"))
    if kind == "llava" and not (isinstance(model.vision, ViT) and model.vision_shape.class_token):
        unsupported.append(("an encoder without a class token", "a CLIP encoder"))
    if isinstance(model.image_fit, Native):
        unsupported.append(("images that keep their shape", "`crop`, `pad` or `stretch`"))
    if isinstance(model.image_fit, AnyRes) and kind == "llava-hf":
        supported = "`crop`, `pad` or `stretch`; `--format llava-next` has tiles"
        unsupported.append(("images cut into tiles", supported))
    if kind == "llava-next" and isinstance(model.image_fit, str):
        unsupported.append((f"`image_fit: {model.image_fit}`", "images cut into tiles, `{kind: anyres}`"))
    if kind == "llava" and model.image_fit == "stretch":
        unsupported.append(("images stretched to a square", "`crop` or `pad`"))
    where = f"{folder}: {kind}"
    found = [UNSUPPORTED_PART.at(where, got=got, supported=supported) for got, supported in unsupported]
    return learned_tokens(model, folder, kind) + found


def learned_tokens(model: Exported, folder: Path, kind: str) -> list[Problem]:
    """Returns the problems of `of_plugins` for an opened model."""
    return of_plugins(model.config, folder, kind)


def of_plugins(config: Mapping[str, Any], folder: Path, kind: str) -> list[Problem]:
    """Returns the problems of the plugins that a model folder names for inference: learned tokens, which token ids
    cannot express, and an image reducer."""
    plugins, connector = config.get("inference_plugins") or (), config["model"].get("connector")
    reduce = (connector or {}).get("reduce")
    unsupported = []
    if tokens := [name for name in plugins if name != reduce]:
        got = f"learned tokens from {', '.join(tokens)} in every sequence"
        unsupported.append((got, "no learned tokens"))
    if reduce is not None:
        unsupported.append((f"image rows of the reducer `{reduce}`", "the rows of the connector"))
    where = f"{folder}: {kind}"
    return [UNSUPPORTED_PART.at(where, got=got, supported=supported) for got, supported in unsupported]


def write(
    model: Exported,
    folder: Path,
    kind: Literal["llava-hf", "llava-next", "llava"],
    *,
    dtype: torch.dtype | None = None,
) -> None:
    """Writes the folder under a temporary name and renames it.

    Args:
        model: the model to export.
        folder: a new or empty folder.
        kind: `llava-hf`, `llava-next` or `llava`.
        dtype: the data type of the written weights; None keeps theirs.

    Raises:
        UserError: for a model that the format cannot express, and for a folder that is not empty.
        MachineError: for a folder that cannot be written.
    """
    found = problems(model, folder, kind)
    if folder.is_symlink() or (folder.exists() and (not folder.is_dir() or any(folder.iterdir()))):
        found.append(EXPORT_EXISTS.at(str(folder), got="a file, a link or a folder that is not empty"))
    raise_all(found)
    hub, new = kind != "llava", new_token_ids(model)
    prefixes = HUB | (model.config.get("prefixes") or {}) if hub else ORIGINAL
    tensors = _tensors(model, new.rows if hub else model.shape.vocab, prefixes, dtype)
    config = _hub_config(model, new) if hub else _original_config(model)
    kept = dtype or next(model.text.parameters()).dtype
    end = {
        "bos_token_id": _or_none(model, "bos"),
        "eos_token_id": _eos(model),
        "pad_token_id": new.pad if hub else model.config.get("pad"),
    }
    with export_folder(folder) as aside:
        _write_shards(aside, tensors, size=_bytes(model, kept))
        write_json_atomic(aside / "config.json", config | {"dtype": str(kept).removeprefix("torch.")})
        write_json_atomic(aside / "generation_config.json", {k: v for k, v in end.items() if v is not None})
        processor_files.write(model, aside, new if hub else None)


def common_tensors(vision: nn.Module, connector: nn.Module, text: nn.Module) -> dict[str, Tensor]:
    """Returns the tensors of a model's parts by public names with the prefixes of `pretrained_folder.py`."""
    parts = (
        (vision, encoders.VIT, "vision."),
        (connector, CONNECTOR_OF_TILES, "connector."),
        (text, LLAMA, "text."),
    )
    found = (name_maps.public(module, table, prefix=prefix) for module, table, prefix in parts)
    return {name: tensor for part in found for name, tensor in part.items()}


def _tensors(
    model: Exported, vocab: int, prefixes: Mapping[str, str], dtype: torch.dtype | None
) -> Iterator[tuple[str, Tensor]]:
    for name, tensor in common_tensors(model.vision, model.connector, model.text).items():
        if name in GROWING:
            tensor = _grown(tensor, vocab)
        yield _renamed(name, prefixes), tensor.to(dtype or tensor.dtype)
    for name, tensor in _after_feature_layer(model).items():
        yield _renamed(name, prefixes), tensor.to(dtype or tensor.dtype)


def _after_feature_layer(model: Exported) -> dict[str, Tensor]:
    """Returns the encoder's tensors after the feature layer: the passthrough ones, else an identity norm."""
    if model.passthrough:
        return {name: t for name, t in model.passthrough.items() if name.startswith("vision.")}
    weight = next(model.vision.parameters())
    width = model.vision_shape.width
    return {
        "vision.post_layernorm.weight": torch.ones(width, dtype=weight.dtype),
        "vision.post_layernorm.bias": torch.zeros(width, dtype=weight.dtype),
    }


def _grown(rows_VD: Tensor, vocab: int) -> Tensor:
    """Returns the matrix with `vocab` rows. Each new one is the mean of the others, so that its logit is
    unlikely to be the largest."""
    more = vocab - len(rows_VD)
    if more <= 0:
        return rows_VD
    mean_D = rows_VD.float().mean(0).to(rows_VD)
    return torch.cat([rows_VD, mean_D.expand(more, -1)])


def _renamed(name: str, prefixes: Mapping[str, str]) -> str:
    for ours, theirs in prefixes.items():
        if name.startswith(ours):
            return theirs + name.removeprefix(ours)
    raise AssertionError(name)


def _bytes(model: Exported, dtype: torch.dtype) -> int:
    """Returns the bytes of the written weights, without the rows that an export adds."""
    written = common_tensors(model.vision, model.connector, model.text) | _after_feature_layer(model)
    return sum(tensor.numel() for tensor in written.values()) * dtype.itemsize


def _write_shards(folder: Path, tensors: Iterator[tuple[str, Tensor]], *, size: int) -> None:
    """Writes one file, or several with an index. Copies the tensors of only one file at a time. `size`: of all, for
    the progress that is shown."""
    shards: list[list[str]] = []
    shard: dict[str, Tensor] = {}
    total = filled = 0

    def close() -> None:
        nonlocal filled
        with moving(move, total - filled, total):
            file = folder / f"shard-{len(shards)}"
            tensor_writer.write(file, tensor_writer.widest_first(shard), {"format": "pt"})
        shards.append(list(shard))
        shard.clear()
        filled = 0

    with working_bytes("writing weights", size) as move:
        for name, tensor in tensors:
            if shard and filled + tensor.nbytes > MAX_FILE_BYTES:
                close()
            shard[name] = tensor.detach().clone(memory_format=torch.contiguous_format)
            filled, total = filled + tensor.nbytes, total + tensor.nbytes
        close()
    one = len(shards) == 1
    names = ["model.safetensors"] if one else [
        f"model-{i + 1:05d}-of-{len(shards):05d}.safetensors" for i in range(len(shards))
    ]  # fmt: skip
    for i, name in enumerate(names):
        os.rename(folder / f"shard-{i}", folder / name)
    if not one:
        where = {key: name for name, keys in zip(names, shards, strict=True) for key in keys}
        index = {"metadata": {"total_size": total}, "weight_map": where}
        write_json_atomic(folder / "model.safetensors.index.json", index)


def _hub_config(model: Exported, new: TokenIds) -> dict[str, Any]:
    vision = model.vision_shape
    full = bool(model.passthrough)
    return _kind_of_hub(model) | {
        "image_token_index": new.image,
        "image_seq_length": vision.image.tokens,
        "projector_hidden_act": "gelu",
        "multimodal_projector_bias": True,
        "vision_feature_layer": vision.feature_layer if full else -1,
        "vision_feature_select_strategy": "default" if vision.class_token else "full",
        "tie_word_embeddings": model.shape.tied,
        "text_config": _text_config(model, new.rows),
        "vision_config": _vision_config(model, full),
    }


def _kind_of_hub(model: Exported) -> dict[str, Any]:
    """Returns the keys of the config that llava-hf and llava-next folders do not share."""
    if not isinstance(model.image_fit, AnyRes):
        return {"model_type": "llava", "architectures": ["LlavaForConditionalGeneration"]}
    return {
        "model_type": "llava_next", "architectures": ["LlavaNextForConditionalGeneration"],
        "use_image_newline_parameter": True, "image_grid_pinpoints": processor_files.pixels_of_grids(model),
    }  # fmt: skip


def _text_config(model: Exported, vocab: int) -> dict[str, Any]:
    shape, name = model.shape, family(model)
    config = {
        "model_type": name, "architectures": [ARCHITECTURES[name]], "vocab_size": vocab,
        "hidden_size": shape.width, "num_hidden_layers": shape.depth, "num_attention_heads": shape.heads,
        "num_key_value_heads": shape.kv_heads, "head_dim": shape.head_size, "intermediate_size": shape.mlp,
        "max_position_embeddings": shape.context, "rms_norm_eps": shape.norm_eps, "hidden_act": "silu",
        "tie_word_embeddings": shape.tied, "rope_theta": shape.rope.theta,
        "bos_token_id": _or_none(model, "bos"), "eos_token_id": _eos(model),
    }  # fmt: skip
    if name == "mistral":
        config["sliding_window"] = None
    if shape.rope.scaling == "dynamic":  # transformers changes sequences that are longer than this key says
        config["max_position_embeddings"] = shape.rope.original
    if shape.rope.scaling != "none":
        values = {key: getattr(shape.rope, field) for field, key in ROPE_KEYS[shape.rope.scaling].items()}
        given = {key: value for key, value in values.items() if value}  # 0: the default of a public config
        config["rope_scaling"] = {"rope_type": shape.rope.scaling, **given}
    return config


def _vision_config(model: Exported, full: bool) -> dict[str, Any]:
    shape = model.vision_shape
    hidden_acts = {ours: theirs for theirs, ours in encoders.HIDDEN_ACTS.items()}
    head = any(name.startswith("vision.head.") for name in model.passthrough)  # from SigLIP; LLaVA ignores it
    return {
        "model_type": encoders.family_of(shape), "hidden_size": shape.width,
        "num_hidden_layers": shape.depth if full else shape.built, "num_attention_heads": shape.heads,
        "intermediate_size": shape.mlp, "image_size": shape.image.size, "patch_size": shape.patch,
        "hidden_act": hidden_acts[shape.activation], "layer_norm_eps": shape.norm_eps,
    } | ({"vision_use_head": head} if not shape.class_token else {})  # fmt: skip


def _original_config(model: Exported) -> dict[str, Any]:
    text = _text_config(model, model.shape.vocab)
    vision = model.vision_shape
    return text | {
        "model_type": "llava_llama", "architectures": ["LlavaLlamaForCausalLM"], "use_mm_proj": True,
        "mm_projector_type": "mlp2x_gelu", "mm_hidden_size": vision.width,
        # LLaVA reads the encoder's shape from another folder; with it, this one can be imported alone
        "vision_config": _vision_config(model, full=True),
        "mm_vision_select_layer": vision.feature_layer, "mm_vision_select_feature": "patch",
        "mm_use_im_start_end": False, "mm_use_im_patch_token": False, **_original_images(model),
        "tokenizer_padding_side": "right", "tokenizer_model_max_length": model.shape.context,
    }  # fmt: skip


def _original_images(model: Exported) -> dict[str, Any]:
    """Returns the keys of original LLaVA's config that say what is done with images."""
    if not isinstance(model.image_fit, AnyRes):
        aspect = "pad" if model.image_fit == "pad" else "square"
        return {"mm_patch_merge_type": "flat", "image_aspect_ratio": aspect}
    sizes = [[width, height] for height, width in processor_files.pixels_of_grids(model)]
    return {
        "mm_patch_merge_type": "spatial_unpad",
        "image_aspect_ratio": "anyres",
        "image_grid_pinpoints": sizes,
    }


def _or_none(model: Exported, key: str) -> int | None:
    return getattr(model.tokenizer, key) if model.tokenizer.size else None


def _eos(model: Exported) -> int | list[int] | None:
    """Returns the ids that end an answer, as `load().generate` has them: one id, a list of several, or None."""
    eos = tuple(model.config.get("eos") or ())
    if model.tokenizer.size:
        eos = stop_ids(model.template, model.tokenizer, eos)
    return list(eos) if len(eos) > 1 else next(iter(eos), None)


def require_ours(folder: Path) -> None:
    """Raises `UserError` if lmmkit did not write the folder."""
    if not model_folder.is_ours(folder):
        raise UserError(NOT_LMMKIT.at(str(folder), got="another kind of folder"))
