"""Recipes for models that have no recipe file: parts, tokenizer and chat format, read from model folders."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple, cast

from lmmkit.data.chat_templates import default_template
from lmmkit.data.text_tokenizers.choose import open_tokenizer
from lmmkit.errors import UserError
from lmmkit.errors.plan import NO_TEXT, NO_VISION
from lmmkit.errors.weights import FOREIGN_PROMPT, MODEL_CONFIG, WEIGHTS_ADAPTER
from lmmkit.plan import shapes
from lmmkit.recipe import (
    Chat,
    ConnectorConfig,
    Model,
    Recipe,
    TextFrom,
    Tokenizer,
    VisionFrom,
    VisionScratch,
    VisionTimm,
    around,
    model_from_mapping,
    read_recipe,
    vision_from_mapping,
)
from lmmkit.recipe.model import Fit
from lmmkit.weights import model_folder
from lmmkit.weights.detect import open_pretrained
from lmmkit.weights.pretrained_folder import PretrainedFolder

IMPORTED_STAGE = "imported"  # the stage name of a model that lmmkit did not train


class _Encoder(NamedTuple):
    """Describes an encoder in a folder: the section that names it, its `image_fit`, and its shape."""

    origin: VisionFrom
    image_fit: Fit
    section: VisionScratch | VisionTimm


def recipe_of(
    folder: Path, template: str | None = None, *, vision: Path | None = None, base: Path | None = None
) -> tuple[Recipe, PretrainedFolder]:
    """Returns the recipe for a public folder with a decoder, and the folder's description.

    Args:
        folder: a folder in the layout of llava-hf, original LLaVA or a decoder alone.
        template: the chat template. Default: the one that fits the tokenizer, else `vicuna_v1`.
        vision: a folder with the encoder, if `folder` lacks it.
        base: a folder with the decoder, if `folder` lacks it.

    Raises:
        UserError: in the cases of `described`, or without `template` a model whose prompts have another form.
    """
    recipe, source = described(folder, template, vision=vision, base=base)
    found = recipe.model.chat.template
    if template is None and (got := foreign_prompts(source, found)):
        raise UserError(FOREIGN_PROMPT.at(str(folder), got=got, nearest=found))
    return recipe, source


def described(
    folder: Path, template: str | None = None, *, vision: Path | None = None, base: Path | None = None
) -> tuple[Recipe, PretrainedFolder]:
    """Returns the same as `recipe_of`, also for a model whose prompts no template writes (`foreign_prompts`).

    Raises `UserError` if there is no decoder, or a connector without an encoder.
    """
    source = open_pretrained(folder)
    at = str(folder.resolve())
    decoder = str(base.resolve()) if base else at
    if source.text is None:
        raise no_text(folder, source.kind)
    encoder = _encoder_in(vision, source.layer) if vision else _encoder_of(source)
    if source.connector and encoder is None:
        raise UserError(NO_VISION.at(str(folder), got="a connector without the encoder that it reads"))
    image_fit: Fit = "pad" if source.pads or encoder is None else encoder.image_fit
    if source.tiles and encoder:
        image_fit = source.tiles(shapes.image_of(encoder.section, encoder.origin.from_).size)
    model = Model(
        vision=encoder.origin if source.connector and encoder else None,
        connector=ConnectorConfig(kind="mlp2x_gelu", from_=at) if source.connector else None,
        text=TextFrom(from_=decoder, context=source.text.section.context),
        tokenizer=Tokenizer(from_=decoder),
        chat=Chat(template=cast(Any, template or _template(Path(decoder))), image_fit=image_fit),
    )
    return around(model, IMPORTED_STAGE), source


def recipe_of_base(folder: Path, template: str | None = None) -> Recipe:
    """Returns the recipe for a model that takes all parts from one folder, public or lmmkit's.

    Raises `UserError` in the cases of `recipe_of`, and for a model that needs learned tokens.
    """
    if not model_folder.is_ours(folder):
        return recipe_of(folder, template)[0]
    config, at = model_folder.config_of(folder), str(folder.resolve())
    if model_folder.is_encoder(config):
        raise no_text(folder, "lmmkit")
    if plugins := config.get("inference_plugins"):
        got, that_fit = (
            f"a base with learned tokens from {', '.join(plugins)}",
            "of a base without learned tokens",
        )
        raise UserError(WEIGHTS_ADAPTER.at(str(folder), got=got, that_fit=that_fit))
    model = model_from_mapping(config["model"])
    chat = model.chat if template is None else replace(model.chat, template=cast(Any, template))
    parts = replace(
        model, tokenizer=Tokenizer(from_=at), chat=chat, vision=model.vision and VisionFrom(from_=at),
        connector=model.connector and replace(model.connector, from_=at),
        text=TextFrom(from_=at, context=model.text.context),
    )  # fmt: skip
    return around(parts, IMPORTED_STAGE)


def no_text(folder: Path, kind: str) -> UserError:
    """Returns the error for a folder that has no decoder."""
    return UserError(NO_TEXT.at(str(folder), got=f"{kind}: an encoder alone"))


def _encoder_in(folder: Path, layer: int | None) -> _Encoder | None:
    """Returns the encoder in a folder; None without one.

    `layer`: the vision state to read, if it is not the folder's.
    """
    if not model_folder.is_ours(folder):
        return _encoder_of(open_pretrained(folder, feature_layer=layer))
    config = model_folder.config_of(folder)
    if "vision" not in config["model"]:
        return None
    alone = model_folder.is_encoder(config)
    fit = config["image_fit"] if alone else model_from_mapping(config["model"]).chat.image_fit
    origin = VisionFrom(from_=str(folder.resolve()), feature_layer=layer)
    return _Encoder(origin, fit, vision_from_mapping(config["model"]["vision"]))


def _encoder_of(source: PretrainedFolder) -> _Encoder | None:
    if source.vision is None:
        return None
    found, name = source.vision, str(source.folder.resolve())
    origin = VisionFrom(from_=name, feature_layer=found.section.feature_layer)
    return _Encoder(origin, found.image_fit, found.section)


def foreign_prompts(source: PretrainedFolder, template: str) -> str:
    """Returns what an original LLaVA is whose prompts no template writes; empty for other models. `template`: the one
    that fits its tokenizer."""
    if source.kind != "llava" or source.text is None:
        return ""
    if source.text.family == "mistral":
        return "an original LLaVA on Mistral, with prompts as `mistral_instruct`"
    if source.tiles and template != "vicuna_v1":
        return f"an original LLaVA-1.6 with tokens of `{template}` in prompts of another form, as `chatml_direct`"
    return ""


def _template(folder: Path) -> str:
    try:
        return default_template(open_tokenizer(folder))
    except UserError:
        return "vicuna_v1"  # the first use of the tokenizer reports the error with its reason


def recipe_of_ours(folder: Path, config: Mapping[str, Any], root: str | Path | None) -> Recipe:
    """Returns the recipe of a model folder that lmmkit wrote, with the tokenizer from that folder.

    Raises `UserError` if the folder contains only an encoder.
    """
    if model_folder.is_encoder(config):
        raise no_text(folder, "lmmkit")
    path = folder / "recipe.yaml"
    if not path.is_file():
        model = model_from_mapping(config["model"])
        return around(replace(model, tokenizer=Tokenizer(from_=str(folder.resolve()))), config["stage"])
    tokenizer = json.dumps(str(folder.resolve()))  # quoted: it is read as YAML
    recipe = read_recipe(
        path, root=Path(root or config.get("root", ".")),
        # the folder may have been copied from the machine of the training run
        overrides=[f"model.tokenizer.from={tokenizer}", "speed.attention=auto", "output.observers=[]"],
    )  # fmt: skip
    if config["stage"] not in recipe.stages:
        where = f"{folder / 'config.json'}: stage"
        raise UserError(MODEL_CONFIG.at(where, got=repr(config["stage"]), value=f"a stage of {path}"))
    return recipe
