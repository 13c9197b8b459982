"""A public model folder: its parts, and its tensors by names that all layouts share.

The tensor names of every layout get common prefixes: `text.` before a decoder's public names, `vision.`
before an encoder's, `connector.` before a projector's. Names without a matching rule are unchanged.
"""

from __future__ import annotations

import functools
import logging
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from itertools import takewhile
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from lmmkit.errors import UserError
from lmmkit.errors.weights import MISSING, PART, WRAPPED
from lmmkit.model.vision import ViT
from lmmkit.recipe import AnyResFit, TextScratch
from lmmkit.weights import decoders, encoders, name_maps, timm_encoder
from lmmkit.weights.decoders import DecoderSource
from lmmkit.weights.encoders import EncoderSource
from lmmkit.weights.name_maps import Table
from lmmkit.weights.tensor_reader import Stored, opened
from lmmkit.weights.timm_encoder import TimmSource

_log = logging.getLogger("lmmkit")
WRAPPERS = (
    "_orig_mod.",
    "_fsdp_wrapped_module.",
    "_checkpoint_wrapped_module.",
    "module.",
    "base_model.model.",
)
NOT_TIED = "the config ties the head to the embedding, but the file has another head; it is used, not tied"
MERGE = "merge the adapter with `peft` into its base"  # the fix for an adapter that is not read as it is

CONNECTOR: Table = (
    ("first.weight", "linear_1.weight"),
    ("first.bias", "linear_1.bias"),
    ("second.1.weight", "linear_2.weight"),
    ("second.1.bias", "linear_2.bias"),
)
CONNECTOR_OF_TILES: Table = (*CONNECTOR, ("newline.row", "newline"))
Spelling = tuple[tuple[str, str], ...]
"""(pattern, its place in ours): the first that matches the beginning of a name renames it."""
# next to the vision model in a full CLIP or SigLIP
TWO_TOWERS = r"|^visual_projection\.|^text_projection\.|^logit_(scale|bias)$"


@dataclass(frozen=True, kw_only=True)
class PretrainedFolder:
    """Describes a public folder. `image_token`: the id that represents one row of an image. `pads`: whether
    it pads images, independent of its encoder's image processor. `tiles`: how it cuts them, if it does, by the side
    of the encoder's images. `layer`: the vision state to read, if the folder names one for an encoder elsewhere."""

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
    tiles: Callable[[int], AnyResFit] | None = None
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
        # Files that cannot be read are reported by `fill`.
        with suppress(UserError), self.tensors() as stored:
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
        if self.kind == "peft":
            return MERGE
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
