"""Reads which token ids end an answer, and which pads, from the files of a model folder."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from lmmkit.runs.files import read_json
from lmmkit.weights import model_folder
from lmmkit.weights.config import Config

GENERATION = "generation_config.json"


@dataclass(frozen=True)
class EndIds:
    """Holds the ids that a folder names: those that end an answer, in its order, and the padding id."""

    eos: tuple[int, ...] = ()
    pad: int | None = None


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
