"""Lists what a public folder asks for and lmmkit does not do: an export of the imported model has none of it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from lmmkit.runs.files import read_json
from lmmkit.weights.end_ids import GENERATION
from lmmkit.weights.pretrained_folder import PretrainedFolder

GREEDY = {  # settings with which transformers changes a greedy answer, by the values without an effect
    "repetition_penalty": (1.0,), "encoder_repetition_penalty": (1.0,), "no_repeat_ngram_size": (0,), "num_beams": (1,),
    "min_length": (0,), "min_new_tokens": (0,), "bad_words_ids": (), "suppress_tokens": (), "begin_suppress_tokens": (),
    "forced_bos_token_id": (), "forced_eos_token_id": (), "sequence_bias": (), "exponential_decay_length_penalty": (),
    "guidance_scale": (1.0,), "stop_strings": (), "max_length": (20,), "max_new_tokens": (), "max_time": (),
}  # fmt: skip
SAMPLING = (
    "do_sample", "temperature", "top_p", "top_k", "min_p", "top_h", "typical_p", "epsilon_cutoff", "eta_cutoff"
)  # fmt: skip
TEMPLATES = ("chat_template.jinja", "chat_template.json")


def left_out(source: PretrainedFolder, template: str) -> list[str]:
    """Returns a notice for each setting of the folder that answers and exports leave out. `template`: the chat
    template that the model has instead of the folder's."""
    folder = source.folder
    found = [f"{folder / 'config.json'}: {each}" for each in (source.text.left_out if source.text else ())]
    return [*found, *_generation(folder), *_templates(folder, template)]


def _generation(folder: Path) -> Iterator[str]:
    """Yields the settings that change greedy answers, and those by which transformers samples."""
    path = folder / GENERATION
    given = _values(path)
    unlike = [f"{key} {given[key]}" for key in GREEDY if given.get(key) not in (None, *GREEDY[key])]
    if unlike:
        yield f"{path}: {', '.join(unlike)} not applied to answers; exports leave it out"
    if given.get("do_sample"):
        sampled = ", ".join(f"{key} {given[key]}" for key in SAMPLING if given.get(key) is not None)
        yield f"{path}: {sampled}: answers are greedy unless you ask for a temperature; exports leave it out"


def _templates(folder: Path, template: str) -> Iterator[str]:
    """Yields the folder's chat template, if it has one."""
    paths = [folder / name for name in TEMPLATES if (folder / name).is_file()]
    if not paths and "chat_template" in _values(folder / "tokenizer_config.json"):
        paths = [folder / "tokenizer_config.json"]
    if paths:
        yield f"{paths[0]}: its chat template is not read; the model and its exports have `{template}`"


def _values(path: Path) -> dict:
    return read_json(path, hint="Correct or remove the file.") if path.is_file() else {}
