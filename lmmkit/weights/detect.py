"""Detects what a public model folder contains: parts, their recipe sections and tensor names.

The tensor names of every layout get common prefixes: `text.` before a decoder's public names, `vision.`
before an encoder's, `connector.` before a projector's. Names without a matching rule are unchanged.
"""

from __future__ import annotations

import functools
import logging
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from itertools import takewhile
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from lmmkit.errors import UserError
from lmmkit.errors.weights import ARCHITECTURE, MISSING, PART, WRAPPED
from lmmkit.model.vision import ViT
from lmmkit.recipe import AnyResFit, TextScratch
from lmmkit.weights import decoders, encoders, name_maps, timm_encoder
from lmmkit.weights.config import Config
from lmmkit.weights.decoders import DecoderSource, read_decoder
from lmmkit.weights.encoders import EncoderSource, read_encoder
from lmmkit.weights.name_maps import Table
from lmmkit.weights.tensor_reader import Stored, opened
from lmmkit.weights.timm_encoder import TimmSource, read_timm

_log = logging.getLogger("lmmkit")
WRAPPERS = (
    "_orig_mod.",
    "_fsdp_wrapped_module.",
    "_checkpoint_wrapped_module.",
    "module.",
    "base_model.model.",
)
NOT_TIED = "the config ties the head to the embedding, but the file has another head; it is used, not tied"

CONNECTOR: Table = (
    ("first.weight", "linear_1.weight"),
    ("first.bias", "linear_1.bias"),
    ("second.1.weight", "linear_2.weight"),
    ("second.1.bias", "linear_2.bias"),
)
CONNECTOR_OF_TILES: Table = (*CONNECTOR, ("newline.row", "newline"))
Spelling = tuple[tuple[str, str], ...]
"""(pattern, its place in ours): the first that matches the beginning of a name renames it."""

LLAVA_HF: Spelling = (
    (r"(?:model\.)?vision_tower\.(?:vision_model\.)?", "vision."),
    (r"(?:model\.)?multi_modal_projector\.", "connector."),
    (r"language_model\.model\.|model\.language_model\.", "text.model."),
    (r"language_model\.lm_head\.|lm_head\.", "text.lm_head."),
)
NEXT_SIZES = [[336, 672], [672, 336], [672, 672], [1008, 336], [336, 1008]]  # of a config that names none
LLAVA_NEXT: Spelling = ((r"(?:model\.)?image_newline$", "connector.newline"), *LLAVA_HF)
LLAVA: Spelling = (  # low-rank checkpoints have the prefix of a wrapper
    (r"base_model\.model\.model\.mm_projector\.0\.", "connector.linear_1."),
    (r"base_model\.model\.model\.mm_projector\.2\.", "connector.linear_2."),
    (r"base_model\.model\.model\.", "text.model."),
    (r"model\.vision_tower\.vision_tower\.vision_model\.", "vision."),
    (r"model\.mm_projector\.0\.", "connector.linear_1."),
    (r"model\.mm_projector\.2\.", "connector.linear_2."),
    (r"model\.", "text.model."),
    (r"lm_head\.", "text.lm_head."),
)
PEFT: Spelling = (  # as `peft` names the parts of a LLaVA or of a decoder, on transformers 4 and 5
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
# next to the vision model in a full CLIP or SigLIP
TWO_TOWERS = r"|^visual_projection\.|^text_projection\.|^logit_(scale|bias)$"


@dataclass(frozen=True, kw_only=True)
class PretrainedFolder:
    """Describes a public folder. `image_token`: the id that represents one row of an image. `pads`: whether
    it pads images, independent of its encoder's image processor. `tiles`: how it cuts them, if it does. `layer`:
    the vision state to read, if the folder names one for an encoder elsewhere."""

    folder: Path
    kind: str
    spelling: Spelling
    text: DecoderSource | None = None
    vision: EncoderSource | TimmSource | None = None
    connector: bool = False
    image_token: int | None = None
    dtype: str = "float32"
    pickled: bool = False
    pads: bool = False
    tiles: AnyResFit | None = None
    layer: int | None = None

    @contextmanager
    def tensors(self) -> Iterator[dict[str, Stored]]:
        """Yields the folder's tensors, by names with the common prefixes."""
        with opened(self.folder, pickled=self.pickled) as found:
            yield {_spelt(name, self.spelling): stored for name, stored in found.items()}

    def place(self, name: str) -> str:
        """Returns a tensor's name in the folder with the common prefix in place of the folder's."""
        return _spelt(name, self.spelling)

    def stored_dtype(self) -> torch.dtype:
        """Returns the narrowest float type that represents all its tensors, independent of its config."""
        with self.tensors() as stored:
            types = {each.dtype for each in stored.values() if isinstance(each.dtype, torch.dtype)}
        floats = sorted((t for t in types if t.is_floating_point), key=str)
        return functools.reduce(torch.promote_types, floats) if floats else torch.float32

    def text_section(self) -> TextScratch:
        """Returns the decoder's section, tied only if no head of other bits than the embedding is stored."""
        assert self.text is not None
        section = self.text.section
        if not section.tied:
            return section
        embed = next(theirs for ours, theirs in self.text.table if ours == "embed.weight")
        with (
            suppress(UserError),
            self.tensors() as stored,
        ):  # files that cannot be read are reported by `fill`
            pair = [stored.get(f"text.{name}") for name in (embed, "lm_head.weight")]
            if all(pair) and not _same_bits(*(each.read() for each in pair if each)):
                _log.warning("%s: %s", self.folder, NOT_TIED)
                return replace(section, tied=False)
        return section

    def prefixes(self) -> dict[str, str]:
        """Returns the folder's name prefix for each common prefix. An export writes these back."""
        found = {}
        with opened(self.folder, pickled=self.pickled) as names:
            for name in names:
                for pattern, place in self.spelling:
                    if match := re.match(pattern, name):
                        found.setdefault(place, match.group())
                        break
        return found

    def spared(self, part: str, module: nn.Module) -> dict[str, Tensor]:
        """Returns the tensors of a part that the module does not have."""
        placed = name_maps.map_names(module, self._table(part, module))
        with self.tensors() as stored:
            return {
                name: each.read()
                for name, each in stored.items()
                if name.startswith(f"{part}.") and name.removeprefix(f"{part}.") not in placed
            }

    def parts(self) -> tuple[str, ...]:
        """Returns which of text, vision and connector the folder contains."""
        here = {"text": self.text, "vision": self.vision, "connector": self.connector or None}
        return tuple(name for name, part in here.items() if part is not None)

    def fill(self, part: str, module: nn.Module, stored: Mapping[str, Stored]) -> None:
        """Copies one part's tensors into its module. Raises `UserError` in the cases of `name_maps.check_public`."""
        self._require_unwrapped(part, module, stored)
        name_maps.fill_public(module, **self._pairing(part, module, stored))

    def check(self, part: str, module: nn.Module, stored: Mapping[str, Stored]) -> None:
        """Checks one part's tensors from the headers, like `name_maps.check_public`. The module may be on meta."""
        self._require_unwrapped(part, module, stored)
        name_maps.check_public(module, **self._pairing(part, module, stored))

    def _require_unwrapped(self, part: str, module: nn.Module, stored: Mapping[str, Stored]) -> None:
        """Raises `UserError` if more than half of the part's tensors are there only after something is removed from
        their names: the name of a wrapper, or what all names begin with."""
        if part == "connector":
            self._require_names_of_mlp(module)
        wanted = {f"{part}.{name}" for name in name_maps.map_names(module, self._table(part, module))}
        if 2 * len(wanted & stored.keys()) > len(wanted):
            return
        names = [each.name for each in stored.values()]
        for prefix in (*WRAPPERS, *_common(names)):
            found = {_spelt(name.replace(prefix, ""), self.spelling) for name in names}
            if 2 * len(wanted & found) > len(wanted):
                first = next(name for name in names if prefix in name)
                got = f"`{prefix}` in {sum(prefix in name for name in names)} of {len(names)} names, such as {first}"
                raise UserError(WRAPPED.at(str(self.folder), got=got, prefix=prefix))

    def _pairing(self, part: str, module: nn.Module, stored: Mapping[str, Stored]) -> dict[str, Any]:
        prefix = f"{part}."
        if part == "vision" and isinstance(self.vision, TimmSource) and self.vision.resized:
            stored = timm_encoder.resampled(module, stored, prefix)
        return {
            "table": self._table(part, module), "stored": stored, "prefix": prefix,
            "spare": self._spare(part, module), "fix": self._fix(part),
        }  # fmt: skip

    def _require_names_of_mlp(self, module: nn.Module) -> None:
        """Raises `UserError` for a connector with tensors that no public folder has."""
        known = {ours for ours, _ in CONNECTOR_OF_TILES}
        if lacking := [name for name, _ in module.named_parameters() if name not in known]:
            got = f"an MLP connector, without {len(lacking)} tensors: {', '.join(lacking[:4])}, ..."
            raise UserError(
                MISSING.at(
                    f"{self.folder}: connector.*", got=got, fix="name a `kind` of connector that it has"
                )
            )

    def _fix(self, part: str) -> str:
        if part == "connector":
            return "use the connector with the encoder and the decoder that it was trained with"
        if part == "vision" and isinstance(self.vision, TimmSource):
            return "take a file with timm's tensor names, for this model and this image size"
        return "correct its config.json"

    def _table(self, part: str, module: nn.Module) -> Table:
        if part == "text":
            assert self.text is not None
            return self.text.table
        if isinstance(self.vision, TimmSource):
            return timm_encoder.table(module) if part == "vision" else CONNECTOR_OF_TILES
        return encoders.VIT if part == "vision" else CONNECTOR_OF_TILES

    def _spare(self, part: str, module: nn.Module) -> str:
        """Returns a pattern for public names that the folder may contain and the module does not have."""
        if part == "vision":
            if isinstance(self.vision, TimmSource):
                return timm_encoder.spare(module)
            assert isinstance(module, ViT)
            behind = "|".join(map(str, range(module.shape.built, module.shape.depth))) or "none"
            return rf"{encoders.SPARE_ENCODER}{TWO_TOWERS}|^encoder\.layers\.({behind})\."
        return decoders.SPARE_DECODER if part == "text" else r"$^"


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
        "llava_llama": _llava,
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
    assert found.vision is not None, "a llava-hf folder has an encoder"
    side = found.vision.section.image_size
    assert side is not None, "and its encoder has a size"
    sizes = config.values.get("image_grid_pinpoints", NEXT_SIZES)
    good = isinstance(sizes, list) and all(
        isinstance(size, list)
        and len(size) == 2
        and all(type(n) is int and n in range(side, 65 * side, side) for n in size)
        for size in sizes
    )
    if not sizes or not good:
        values = f"a list of [height, width], multiples of {side} up to {64 * side}"
        raise config.problem("image_grid_pinpoints", sizes, values)
    grids = dict.fromkeys(
        (height // side, width // side) for height, width in sizes
    )  # the first of equal ones counts
    tiles = AnyResFit(kind="anyres", grids=tuple(grids))
    return replace(found, kind="llava-next", spelling=LLAVA_NEXT, tiles=tiles)


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
        mm_patch_merge_type="flat", s2=False,
    )  # fmt: skip
    layer = config.integer("mm_vision_select_layer", -2)
    vision, section = None, config.section("vision_config")
    if section.values:  # in lmmkit's exports
        vision = read_encoder(
            section, folder, feature_layer=layer if feature_layer is None else feature_layer
        )
    text = read_decoder(Config({**config.values, "model_type": "llama"}, config.where))
    aspect = config.one_of("image_aspect_ratio", {"pad": "pad", "square": "square"}, "pad")
    return PretrainedFolder(
        folder=folder, kind="llava", spelling=LLAVA, text=text, vision=vision, connector=True,
        pads=aspect == "pad", layer=layer,
        dtype=_dtype(config),
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


def _common(names: list[str]) -> list[str]:
    """Returns the prefixes, up to a dot, that all names have, from the shortest on."""
    columns = zip(*(name.split(".")[:-1] for name in names), strict=False)
    pieces = [column[0] for column in takewhile(lambda column: len(set(column)) == 1, columns)]
    return [".".join(pieces[: n + 1]) + "." for n in range(len(pieces))]


def _same_bits(a: Tensor, b: Tensor) -> bool:
    return a.dtype == b.dtype and a.shape == b.shape and torch.equal(a.view(torch.uint8), b.view(torch.uint8))


def _spelt(name: str, spelling: Spelling) -> str:
    for pattern, place in spelling:
        if match := re.match(pattern, name):
            return place + name[match.end() :]
    return name


def want_part(source: PretrainedFolder, part: str, where: str) -> None:
    """Raises `UserError` if the folder lacks the part that a recipe takes from it."""
    if part not in source.parts():
        got = f"a {source.kind} folder with only {' and '.join(source.parts())}"
        raise UserError(PART.at(where, got=got, part=part))
