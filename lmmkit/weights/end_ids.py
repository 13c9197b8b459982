"""Determines which token ids end an answer, which one pads, and which one represents a row of an image."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from lmmkit.data.text_tokenizers.choose import TextTokenizer
from lmmkit.runs.files import read_json
from lmmkit.weights import model_folder
from lmmkit.weights.config import Config

IMAGE, PAD = "<image>", "<pad>"
GENERATION = "generation_config.json"


@dataclass(frozen=True)
class EndIds:
    """Holds the ids that a folder names: those that end an answer, in its order, and the padding id."""

    eos: tuple[int, ...] = ()
    pad: int | None = None


def image_id(tokenizer: TextTokenizer, named: int | None, ends: EndIds) -> int:
    """Returns the id that represents a row of an image in `input_ids`.

    It is the id that the model's folder names, unless the tokenizer uses it for something else: for text, as an
    end or for padding. Otherwise it is the tokenizer's `<image>`, or its next free id.
    """
    known, used = (
        tokenizer.control(IMAGE),
        (tokenizer.bos, tokenizer.eos, tokenizer.control(PAD), ends.pad, *ends.eos),
    )
    if named is not None and named >= tokenizer.size and known is None:
        return named
    if named is not None and named not in used and tokenizer.control(tokenizer.spelling(named)) == named:
        return named
    return tokenizer.size if known is None else known


def pad_id(tokenizer: TextTokenizer, named: int | None, image: int) -> int:
    """Returns the id that pads in a model with images, whose rows have the id `image`.

    It is the id that the model's folder names, unless that is the image's. Otherwise, and before an id that the
    tokenizer does not have, it is the tokenizer's `<pad>`; else the next free id.
    """
    known = tokenizer.control(PAD)
    if named is not None and named != image and (named < tokenizer.size or known is None):
        return named
    return max(tokenizer.size, image + 1) if known is None else known


def read_end_ids(folder: Path) -> EndIds:
    """Returns the ids that a folder with a tokenizer names, in the format of lmmkit or a public one.

    Each comes from the first place that names it: generation_config.json, config.json, its `text_config`.
    For a file, its folder is read. Raises `UserError` for a damaged file, and for values that are no ids.
    """
    folder = folder if folder.is_dir() else folder.parent
    if model_folder.is_ours(folder):
        config = model_folder.config_of(folder)
        return EndIds(tuple(config.get("eos") or ()), config.get("pad"))
    found = [
        Config(read_json(path, hint="Correct or remove the file."), str(path))
        for path in (folder / GENERATION, folder / "config.json")
        if path.is_file()
    ]
    found += [config.section("text_config") for config in found]
    eos = next((c.ids("eos_token_id") for c in found if c.has("eos_token_id")), ())
    pad = next((c.ids("pad_token_id") for c in found if c.has("pad_token_id")), ())
    return EndIds(eos, pad[0] if pad else None)
