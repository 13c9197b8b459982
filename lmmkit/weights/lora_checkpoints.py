"""Merges low-rank checkpoints from LLaVA and peft into a decoder."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from lmmkit.errors import raise_all
from lmmkit.errors.weights import WEIGHTS_ADAPTER
from lmmkit.progress import counted
from lmmkit.runs.files import read_json
from lmmkit.weights.config import Config
from lmmkit.weights.decoders import LLAMA
from lmmkit.weights.model_folder import unique_tensors
from lmmkit.weights.name_maps import MappedSlice, map_names
from lmmkit.weights.tensor_reader import Stored

ADAPTER_CONFIG = "adapter_config.json"
_PREFIX = "text."


def is_adapter(folder: Path) -> bool:
    """Returns whether the folder contains low-rank updates of a decoder instead of the decoder."""
    return (folder / ADAPTER_CONFIG).is_file()


def is_alone(folder: Path) -> bool:
    """Returns whether an adapter comes without the model's config, as `peft` writes it. LLaVA adds one."""
    return is_adapter(folder) and not (folder / "config.json").is_file()


def base_name(folder: Path) -> str:
    """Returns the name of the base model in the adapter's config; empty if there is none."""
    config = read_json(folder / ADAPTER_CONFIG, hint="Download the folder again.")
    return str(config.get("base_model_name_or_path") or "")


def unknown_names(names: Iterable[str], parts: tuple[str, ...]) -> list[str]:
    """Returns the names of tensors that are neither updates nor of these parts, named by their prefixes."""
    return [name for name in names if ".lora_" not in name and not name.startswith(parts)]


def merge_checkpoint(module: nn.Module, stored: Mapping[str, Stored], folder: Path) -> None:
    """Adds alpha / r * B A to every matrix that has a pair A, B.

    Raises `UserError` for pairs that are incomplete, do not fit or have no matrix in the module, and for
    settings that lmmkit does not support.
    """
    config = Config(
        read_json(folder / ADAPTER_CONFIG, hint="Download the folder again."), str(folder / ADAPTER_CONFIG)
    )
    config.only(
        peft_type="LORA", bias="none", use_rslora=False, use_dora=False, fan_in_fan_out=False, rank_pattern={},
        alpha_pattern={}, lora_bias=False, layer_replication=None, trainable_token_indices=None,
    )  # fmt: skip
    scale = config.number("lora_alpha") / config.count("r")
    own, known = unique_tensors(module), map_names(module, LLAMA)
    found = {name.removeprefix(_PREFIX): s for name, s in stored.items() if ".lora_" in name}
    pairs, problems = {}, []
    for name in sorted({n.partition(".lora_")[0] for n in found}):
        a, b = (found.get(f"{name}.lora_{side}.weight") for side in "AB")
        place = known.get(f"{name}.weight")
        if a is None or b is None or place is None or _shape(a, b) != tuple(place.of(own).shape):
            got = f"A {a and a.shape}, B {b and b.shape}, {'no matrix' if place is None else place.of(own).shape}"
            that_fit = "whose product B A has the shape of the base model's matrix"
            problems.append(WEIGHTS_ADAPTER.at(f"{folder}: {name}", got=got, that_fit=that_fit))
        else:
            pairs[name] = (a, b, place)
    if not found:
        got, that_fit = "no lora_A and lora_B", "in tensors lora_A and lora_B"
        problems.append(WEIGHTS_ADAPTER.at(str(folder), got=got, that_fit=that_fit))
    raise_all(problems)
    with torch.no_grad():
        for a, b, place in counted("merging low-rank updates", pairs.values()):
            _add(place, own, scale * (b.read().float() @ a.read().float()))


def _shape(a: Stored, b: Stored) -> tuple[int, ...]:
    return (*b.shape[:1], *a.shape[1:])


def _add(place: MappedSlice, own: Mapping[str, Tensor], update: Tensor) -> None:
    part = place.of(own)
    part.copy_(part.float() + update)
