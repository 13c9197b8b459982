"""Exports the low-rank updates of a stage as a folder that `peft` loads onto a transformers base model.

    adapter_config.json  adapter_model.safetensors

The base is the model from which the stage started. A connector that was also trainable is saved in full
(`modules_to_save`). A newline row is in no module that could be saved: it has the name that it has in the base, and
`peft` writes it over the base's, as it does with the biases of `bias: all`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from lmmkit.model.decoder import Decoder
from lmmkit.model.layers import FusedLinear
from lmmkit.runs.files import read_json, write_json_atomic
from lmmkit.weights import tensor_writer
from lmmkit.weights.decoders import LLAMA
from lmmkit.weights.detect import peft_source
from lmmkit.weights.export.export_model import export_folder
from lmmkit.weights.name_maps import map_names
from lmmkit.weights.pretrained_folder import CONNECTOR_OF_TILES

WRAPPED = "base_model.model."  # the prefix that peft adds to the names of the base
PROJECTOR, NEWLINE = "multi_modal_projector", "image_newline"
UPDATE = re.compile(r"lmm\.decoder\.blocks\.(\d+)\.(.+)\.lora\.(\w+)\.([ab])")
PROJECTIONS = {
    ours: theirs.removesuffix(".weight") for ours, theirs in LLAMA if theirs.endswith("_proj.weight")
}


@dataclass(frozen=True, kw_only=True)
class PeftAdapter:
    """Holds the tensors by lmmkit's names, and the settings of their training.

    `connector`: its tensors at the end of the stage if it was trainable, else empty. `has_vision`: whether
    the base is a LLaVA. `base`: the name of the base model for the user of the adapter.
    """

    updates: Mapping[str, Tensor]
    connector: Mapping[str, Tensor]
    alpha: float
    dropout: float
    has_vision: bool
    base: str | None

    @property
    def r(self) -> int:
        """Returns the rank of the updates."""
        return next(len(t) for name, t in self.updates.items() if name.endswith(".a"))


def write(adapter: PeftAdapter, folder: Path) -> None:
    """Writes the folder under a temporary name and renames it. `folder` is new or empty."""
    before = f"{WRAPPED}model.language_model." if adapter.has_vision else f"{WRAPPED}model."
    tensors = {_named(name, before): t.float().contiguous() for name, t in adapter.updates.items()}
    public = dict(CONNECTOR_OF_TILES)
    for ours, tensor in adapter.connector.items():
        name = NEWLINE if public[ours] == "newline" else f"{PROJECTOR}.{public[ours]}"
        tensors[f"{WRAPPED}model.{name}"] = tensor.float().contiguous()
    with export_folder(folder) as aside:
        tensor_writer.write(
            aside / "adapter_model.safetensors", tensor_writer.widest_first(tensors), {"format": "pt"}
        )
        write_json_atomic(aside / "adapter_config.json", _config(adapter, list(tensors)))


def read_back(folder: Path, decoder: Decoder) -> tuple[dict[str, Tensor], dict[str, Tensor], float]:
    """Returns what an import finds in a written folder: the factors by lmmkit's names, the tensors of the
    connector, and alpha / r. Other tensors are among the factors, under the names of the file."""
    with peft_source(folder, connector=True).tensors() as stored:
        tensors = {name: each.read() for name, each in stored.items()}
    connector = {name: tensors.pop(name) for name in list(tensors) if name.startswith("connector.")}
    places = {f"text.{name.removesuffix('.weight')}": at for name, at in map_names(decoder, LLAMA).items()}
    updates, factors = _updated(decoder), {}
    for name, tensor in tensors.items():
        matrix, _, side = name.removesuffix(".weight").partition(".lora_")
        update = updates.get((places[matrix].name, str(places[matrix].rows))) if matrix in places else None
        factors[f"{update}.{side.lower()}" if update and side else name] = tensor
    config = read_json(folder / "adapter_config.json")
    return factors, connector, config["lora_alpha"] / config["r"]


def _updated(decoder: Decoder) -> dict[tuple[str, str], str]:
    """Returns the name of the update of each matrix: (weight, its rows) to the name without the side."""
    found = {}
    for path, linear in decoder.named_modules():
        slices = linear.slices if isinstance(linear, FusedLinear) else {path.rpartition(".")[2]: None}
        for part, rows in slices.items():
            found[f"{path}.weight", str(rows)] = f"lmm.decoder.{path}.lora.{part}"
    return found


def _named(name: str, before: str) -> str:
    """Returns peft's name for a factor: `...qkv.lora.q.a` -> `...q_proj.lora_A.weight`."""
    match = UPDATE.fullmatch(name)
    assert match is not None, name
    n, path, part, side = match.groups()
    at = f"blocks.{{n}}.{path}.weight"
    public = (PROJECTIONS.get(f"{at}[{part}]") or PROJECTIONS[at]).replace("{n}", n)
    return f"{before}{public.removeprefix('model.')}.lora_{side.upper()}.weight"


def _config(adapter: PeftAdapter, names: list[str]) -> dict[str, Any]:
    found = {m.group(1) for name in names if (m := re.search(r"(\w+)\.lora_A\.", name))}
    targets = [p.rpartition(".")[2] for p in PROJECTIONS.values() if p.rpartition(".")[2] in found]
    alpha = int(adapter.alpha) if adapter.alpha == int(adapter.alpha) else adapter.alpha
    return {
        "peft_type": "LORA", "task_type": "CAUSAL_LM", "base_model_name_or_path": adapter.base,
        "inference_mode": True, "r": adapter.r, "lora_alpha": alpha, "lora_dropout": adapter.dropout,
        # a list would also match the projections of the encoder, which have the same names
        "target_modules": rf".*language_model.*\.({'|'.join(targets)})" if adapter.has_vision else targets,
        "modules_to_save": [PROJECTOR] if adapter.connector else None,
        "bias": "none", "fan_in_fan_out": False, "use_rslora": False, "use_dora": False,
    }  # fmt: skip
