"""Detects what a public model folder contains, from its config: parts, their recipe sections and tensor names."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from pathlib import Path

from lmmkit.errors import UserError
from lmmkit.errors.weights import ARCHITECTURE
from lmmkit.recipe import AnyResFit
from lmmkit.weights import decoders, encoders
from lmmkit.weights.config import Config
from lmmkit.weights.decoders import read_decoder
from lmmkit.weights.encoders import read_encoder
from lmmkit.weights.pretrained_folder import PretrainedFolder, Spelling
from lmmkit.weights.timm_encoder import TimmSource, read_timm

LLAVA_HF: Spelling = (
    (r"(?:model\.)?vision_tower\.(?:vision_model\.)?", "vision."),
    (r"(?:model\.)?multi_modal_projector\.", "connector."),
    (r"language_model\.model\.|model\.language_model\.", "text.model."),
    (r"language_model\.lm_head\.|lm_head\.", "text.lm_head."),
)
NEXT_SIZES = [[336, 672], [672, 336], [672, 672], [1008, 336], [336, 1008]]  # of a config that names none
LLAVA_NEXT: Spelling = ((r"(?:model\.)?image_newline$", "connector.newline"), *LLAVA_HF)
LLAVA: Spelling = (  # low-rank checkpoints have the prefix of a wrapper
    (r"(?:base_model\.model\.)?model\.image_newline$", "connector.newline"),
    (r"base_model\.model\.model\.mm_projector\.0\.", "connector.linear_1."),
    (r"base_model\.model\.model\.mm_projector\.2\.", "connector.linear_2."),
    (r"(?:base_model\.model\.)?model\.vision_tower\.vision_tower\.vision_model\.", "vision."),
    (r"base_model\.model\.model\.", "text.model."),
    (r"model\.mm_projector\.0\.", "connector.linear_1."),
    (r"model\.mm_projector\.2\.", "connector.linear_2."),
    (r"model\.", "text.model."),
    (r"lm_head\.", "text.lm_head."),
)
DECODER_OF_LLAVA = {"llava_llama": "llama", "llava_mistral": "mistral"}  # by the model_type of original LLaVA
PEFT: Spelling = (  # as `peft` names the parts of a LLaVA or of a decoder, on transformers 4 and 5
    (r"base_model\.model\.(?:model\.)?image_newline$", "connector.newline"),
    (r"base_model\.model\.(?:model\.)?multi_modal_projector\.", "connector."),
    (r"base_model\.model\.(?:language_model\.)?lm_head\.", "text.lm_head."),
    (
        r"base_model\.model\.(?:model\.language_model|language_model\.model|model(?!\.vision))\.",
        "text.model.",
    ),
)
TIMM_FILE: Spelling = ((r"", "vision."),)
ENCODER: Spelling = ((r"text_model\.", "spare.text_model."), (r"vision_model\.", "vision."), (r"", "vision."))
DECODER: Spelling = ((r"", "text."),)


def peft_source(folder: Path, *, connector: bool, pickled: bool = False) -> PretrainedFolder:
    """Describes an adapter in the format of `peft`, which has no config of the model."""
    return PretrainedFolder(folder=folder, kind="peft", spelling=PEFT, connector=connector, pickled=pickled)


def timm_source(encoder: TimmSource, file: Path, *, pickled: bool = False) -> PretrainedFolder:
    """Describes a timm encoder whose weights are in `file`, under timm's names."""
    return PretrainedFolder(folder=file, kind="timm", spelling=TIMM_FILE, vision=encoder, pickled=pickled)


def open_pretrained(
    folder: Path, *, feature_layer: int | None = None, pickled: bool = False
) -> PretrainedFolder:
    """Describes a folder from its config. Reads no tensors and runs no code from it.

    Args:
        folder: a folder in the layout of llava-hf, original LLaVA, a decoder, CLIP, SigLIP or timm's hub.
        feature_layer: the vision state to read. Default: the folder's (-2 if it names none).
        pickled: whether its `.bin` files may be read, with torch's weights-only reader.

    Raises:
        UserError: for a missing config, an unknown architecture or settings that lmmkit does not support.
    """
    return replace(_source(folder, feature_layer), pickled=pickled)


def _source(folder: Path, feature_layer: int | None) -> PretrainedFolder:
    config = Config.of(folder)
    config.only(quantization_config=None)
    kind = config.text("model_type", "none")
    known = {
        "llava": _llava_hf,
        "llava_next": _llava_next,
        **dict.fromkeys(DECODER_OF_LLAVA, _llava),
        "clip": _two_towers,
        "siglip": _two_towers,
    }
    if kind == "llava" and not config.has("text_config"):
        kind = "llava_llama"  # early versions of original LLaVA wrote `llava`
    if kind in known:
        return known[kind](folder, config, feature_layer)
    if kind == "none" and config.has("architecture"):
        return timm_source(read_timm(config, -2 if feature_layer is None else feature_layer), folder)
    if kind in encoders.ENCODERS:
        vision = read_encoder(config, folder, feature_layer=-2 if feature_layer is None else feature_layer)
        return PretrainedFolder(
            folder=folder, kind=kind, spelling=ENCODER, vision=vision, dtype=_dtype(config)
        )
    if kind in decoders.DECODERS:
        text = read_decoder(config)
        return PretrainedFolder(folder=folder, kind=kind, spelling=DECODER, text=text, dtype=_dtype(config))
    families = [*known, *encoders.ENCODERS, *decoders.DECODERS, "timm's (`architecture`)"]
    where, known = f"{config.where}: model_type", ", ".join(families)
    raise UserError(ARCHITECTURE.at(where, got=f"`{kind}`", known=known))


def _llava_hf(folder: Path, config: Config, feature_layer: int | None) -> PretrainedFolder:
    config.only(projector_hidden_act="gelu", multimodal_projector_bias=True)
    text_config = _with_defaults(config.section("text_config"))
    text = read_decoder(text_config)
    tied = text.section.tied or config.flag("tie_word_embeddings", False)  # as transformers reads the two
    text = replace(text, section=replace(text.section, tied=tied))
    layer = config.integer("vision_feature_layer", -2)
    vision = read_encoder(
        _with_defaults(config.section("vision_config")), folder,
        feature_layer=layer if feature_layer is None else feature_layer,
    )  # fmt: skip
    config.only(vision_feature_select_strategy="default" if vision.section.class_token else "full")
    key = "image_token_id" if config.has("image_token_id") else "image_token_index"
    return PretrainedFolder(
        folder=folder, kind="llava-hf", spelling=LLAVA_HF, text=text, vision=vision, connector=True,
        image_token=config.count(key, 32000), dtype=_dtype(config),
    )  # fmt: skip


def _llava_next(folder: Path, config: Config, feature_layer: int | None) -> PretrainedFolder:
    config.only(use_image_newline_parameter=True)
    found = _llava_hf(folder, config, feature_layer)
    return replace(
        found, kind="llava-next", spelling=LLAVA_NEXT, tiles=partial(_tiles, config, "[height, width]")
    )


def _tiles(config: Config, order: str, side: int) -> AnyResFit:
    """Returns the grids of tiles of `side` pixels that a config names by their sizes. `order`: of the two sides."""
    key = "image_grid_pinpoints"
    sizes = config.values.get(key, NEXT_SIZES if order == "[height, width]" else None)
    values = f"a list of {order}, multiples of {side} up to {64 * side}"
    if isinstance(sizes, str):
        raise config.lacking(key, sizes, values)
    good = isinstance(sizes, list) and all(
        isinstance(size, list)
        and len(size) == 2
        and all(type(n) is int and n in range(side, 65 * side, side) for n in size)
        for size in sizes
    )
    if not sizes or not good:
        raise config.problem(key, sizes, values)
    grids = [(a // side, b // side) for a, b in sizes]
    if order == "[width, height]":
        grids = [(lines, columns) for columns, lines in grids]
    return AnyResFit(kind="anyres", grids=tuple(dict.fromkeys(grids)))  # the first of equal ones counts


def _with_defaults(section: Config) -> Config:
    """Adds class defaults, which the published llava-hf configs (Vicuna-7B, ViT-L/14-336) omit."""
    known = {
        "llama": {
            "hidden_size": 4096, "num_hidden_layers": 32, "num_attention_heads": 32, "intermediate_size": 11008,
            "vocab_size": 32000, "max_position_embeddings": 2048,
        },
        "clip_vision_model": {
            "hidden_size": 768, "num_hidden_layers": 12, "num_attention_heads": 12, "intermediate_size": 3072,
            "image_size": 224, "patch_size": 32,
        },
    }  # fmt: skip
    defaults = known.get(str(section.values.get("model_type")), {})
    lacking = {key: value for key, value in defaults.items() if not section.has(key)}
    return Config({**section.values, **lacking}, section.where)


def _llava(folder: Path, config: Config, feature_layer: int | None) -> PretrainedFolder:
    config.only(
        mm_projector_type="mlp2x_gelu", mm_vision_select_feature="patch", mm_use_im_start_end=False,
        mm_resampler_type=None, s2=False,
    )  # fmt: skip
    aspect = config.one_of(
        "image_aspect_ratio", {"pad": "pad", "square": "square", "anyres": "anyres"}, "pad"
    )
    tiled = aspect == "anyres"
    merge, fitting = config.text("mm_patch_merge_type", "flat"), "spatial_unpad" if tiled else "flat"
    if merge != fitting:
        values = f"{fitting!r} with `image_aspect_ratio` {aspect!r}"
        raise config.lacking("mm_patch_merge_type", merge, values)
    layer = config.integer("mm_vision_select_layer", -2)
    vision, section = None, config.section("vision_config")
    if section.values:  # in lmmkit's exports
        vision = read_encoder(
            section, folder, feature_layer=layer if feature_layer is None else feature_layer
        )
    family = DECODER_OF_LLAVA.get(config.text("model_type"), "llama")
    text = read_decoder(Config({**config.values, "model_type": family}, config.where))
    return PretrainedFolder(
        folder=folder, kind="llava", spelling=LLAVA, text=text, vision=vision, connector=True,
        pads=aspect == "pad", layer=layer, dtype=_dtype(config),
        tiles=partial(_tiles, config, "[width, height]") if tiled else None,
    )  # fmt: skip


def _two_towers(folder: Path, config: Config, feature_layer: int | None) -> PretrainedFolder:
    section = _with_defaults(config.section("vision_config"))
    kind = config.text("model_type") + "_vision_model"
    vision = read_encoder(
        Config({**section.values, "model_type": kind}, section.where), folder,
        feature_layer=-2 if feature_layer is None else feature_layer,
    )  # fmt: skip
    return PretrainedFolder(folder=folder, kind=kind, spelling=ENCODER, vision=vision, dtype=_dtype(config))


def _dtype(config: Config) -> str:
    key = "dtype" if config.has("dtype") else "torch_dtype"
    return config.text(key, "float32")
