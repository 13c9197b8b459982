"""Writes and reads lmmkit's model folder, the result of a stage and a possible start of another run.

    model/<stage>/  config.json  recipe.yaml  tokenizer.model  model.safetensors  carried.safetensors
                    lora.safetensors

The recipe contains shapes, template and plugin settings. `config.json` names the stage and step of the
weights, the plugins that inference needs, and the root for paths of local plugin files. An imported model
has no recipe; `carried` contains the further tensors of its public format. `lora` contains the factors of
a stage's low-rank updates, which are already merged into the model's weights. The folder of an encoder
alone has `lmm.vision.*` tensors, and its config has only the vision section.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, get_args

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from torch import Tensor, nn

from lmmkit.api.sample import FitName
from lmmkit.data.text_tokenizers.choose import TextTokenizer
from lmmkit.errors import MachineError, UserError, raise_all
from lmmkit.errors.weights import (
    CANNOT_WRITE,
    EXTRA_TENSORS,
    MISMATCH,
    MODEL_CONFIG,
    MODEL_DAMAGED,
    MODEL_FORMAT,
)
from lmmkit.progress import weighed
from lmmkit.runs.files import io_point, read_json, write_aside, write_json_atomic
from lmmkit.weights import tensor_writer

FOLDER_FORMAT = "lmmkit-model-1"
WEIGHTS = "model.safetensors"
PASSTHROUGH = "carried.safetensors"
UPDATES = "lora.safetensors"
WHOLE = ("lmm.connector.", "lmm.decoder.")  # parts of which all tensors of a folder are used


def _listed(kind: type) -> Callable[[Any], bool]:
    return lambda value: isinstance(value, list) and all(type(item) is kind for item in value)


KEYS: dict[str, Callable[[Any], bool]] = {  # keys of `config.json`, each with the check of its value
    "stage": lambda v: isinstance(v, str), "step": lambda v: type(v) is int,
    "model": lambda v: isinstance(v, dict) and isinstance(v.get("text", v.get("vision")), dict),
    "inference_plugins": _listed(str), "eos": _listed(int), "pad": lambda v: type(v) is int,
    "image_token": lambda v: type(v) is int, "family": lambda v: isinstance(v, str),
    "image_fit": lambda v: v in get_args(FitName),
    "root": lambda v: isinstance(v, str),
    "prefixes": lambda v: isinstance(v, dict) and all(isinstance(to, str) for to in v.values()),
}  # fmt: skip


def write(
    folder: Path, tensors: Mapping[str, Tensor], *, config: Mapping, recipe: str | None,
    tokenizer: TextTokenizer | None, passthrough: Mapping[str, Tensor] | None = None,
    updates: Mapping[str, Tensor] | None = None,
) -> None:  # fmt: skip
    """Writes the folder under a temporary name and renames it. Replaces an old folder of that name.

    `tensors` share no memory. `passthrough`: tensors that the model does not use and an export writes back.
    `updates`: the factors of low-rank updates, already merged into `tensors`.
    Raises `MachineError` if it cannot be written; the old folder is then unchanged.
    """
    files = {WEIGHTS: tensors, PASSTHROUGH: passthrough, UPDATES: updates}
    try:
        with write_aside(folder, replace=True) as aside:
            for file, content in files.items():
                if content or file == WEIGHTS:
                    io_point(f"write {file}")
                    tensor_writer.write(aside / file, tensor_writer.widest_first(content or {}))
            if tokenizer is not None:
                for name, data in tokenizer.files().items():
                    (aside / name).write_bytes(data)
            if recipe is not None:
                (aside / "recipe.yaml").write_text(recipe, encoding="utf-8")
            write_json_atomic(aside / "config.json", {"format": FOLDER_FORMAT, **config})
    except (OSError, SafetensorError) as error:
        raise MachineError(CANNOT_WRITE.at(str(folder), got=str(error))) from error


def config_of(folder: Path) -> dict:
    """Returns the folder's config. Raises `UserError` if lmmkit did not write the folder."""
    path = folder / "config.json"
    config = read_json(path, hint="Name a folder that lmmkit wrote: RUN or RUN/model/<stage>.")
    if config.get("format") != FOLDER_FORMAT:
        raise UserError(
            MODEL_FORMAT.at(str(folder), got=f"format {config.get('format')!r}", known=FOLDER_FORMAT)
        )
    wrong = [key for key, fits in KEYS.items() if key in config and not fits(config[key])]
    wrong += [key for key in ("stage", "model") if key not in config]
    raise_all(
        MODEL_CONFIG.at(f"{path}: {key}", got=repr(config.get(key)), value="a value as lmmkit writes it")
        for key in wrong
    )
    return config


def is_ours(folder: Path) -> bool:
    """Returns whether lmmkit wrote the folder."""
    path = folder / "config.json"
    return (
        path.is_file() and read_json(path, hint="Correct or remove the file.").get("format") == FOLDER_FORMAT
    )


def is_encoder(config: Mapping) -> bool:
    """Returns whether a folder's config describes an encoder alone."""
    return "text" not in config["model"]


def carried_of(folder: Path) -> dict[str, Tensor]:
    """Returns the tensors that only an export uses; an empty dict without the file."""
    return _beside(folder / PASSTHROUGH)


def updates_of(folder: Path) -> dict[str, Tensor]:
    """Returns the factors of the low-rank updates in the folder's weights; an empty dict without the file."""
    return _beside(folder / UPDATES)


def _beside(path: Path) -> dict[str, Tensor]:
    try:
        return load_file(path) if path.is_file() else {}
    except (OSError, SafetensorError) as error:
        raise UserError(MODEL_DAMAGED.at(str(path), got=str(error))) from None


def tensors(folder: Path, names: Collection[str]) -> dict[str, Tensor]:
    """Returns the named tensors, without those that the folder does not contain."""
    with _opened(folder / WEIGHTS) as file:
        return {name: file.get_tensor(name) for name in sorted(set(names) & set(file.keys()))}


def dtype_of(folder: Path) -> torch.dtype:
    """Returns the data type of the folder's weights; that of the decoder if there is one."""
    with _opened(folder / WEIGHTS) as file:
        names, norm = sorted(file.keys()), "lmm.decoder.norm.weight"
        return file.get_tensor(norm if norm in names else names[0]).dtype


def check(module: nn.Module, folder: Path, *, at: str = "") -> None:
    """Checks names and shapes from the file's header, like `fill`. The module may be on meta."""
    fill(module, folder, at=at, copy=False)


def fill(
    module: nn.Module, folder: Path, *, at: str = "", prefixes: tuple[str, ...] = ("",), strict: bool = True,
    copy: bool = True,
) -> tuple[str, ...]:  # fmt: skip
    """Copies the folder's tensors into the module, name by name.

    Args:
        module: the module to fill. Without `strict`, tensors that the folder lacks keep their values.
        folder: a model folder.
        at: the prefix of the module's names in the folder.
        prefixes: copy only names that begin with one of these.
        strict: require every tensor of the module.

    Returns:
        The names of the module's tensors that the folder does not contain.

    Raises:
        UserError: with every tensor that is missing (if `strict`) or has another shape, and those of connector and
            decoder that the module lacks. An encoder may be stored with more blocks than are used.
    """
    path = folder / WEIGHTS
    own = {at + k: t for k, t in unique_tensors(module).items() if (at + k).startswith(prefixes)}
    with _opened(path) as file, torch.no_grad():
        names = set(file.keys())
        missing = tuple(sorted(set(own) - names))
        shapes = {k: file.get_slice(k).get_shape() for k in own if k in names}
        wrong = {k: str(shape) for k, shape in shapes.items() if shape != list(own[k].shape)}
        wrong |= dict.fromkeys(missing if strict else (), "no such tensor")
        extra = sorted(
            name
            for name in names - set(own)
            if name.startswith(WHOLE) and name.startswith(at) and name.startswith(prefixes)
        )
        raise_all(
            [
                *(MISMATCH.at(f"{path}: {k}", got=got, shape=list(own[k].shape)) for k, got in wrong.items()),
                *(
                    EXTRA_TENSORS.at(f"{path}: {k}", got="a tensor that no part of the model has")
                    for k in extra
                ),
            ]
        )
        if copy:
            there = sorted(set(own) & names)
            for name in weighed(f"loading {folder.name}", there, lambda name: own[name].nbytes):
                own[name].copy_(file.get_tensor(name))
    return missing


@contextmanager
def _opened(path: Path) -> Iterator[Any]:
    """Opens a safetensors file. Raises `UserError` if it, or anything read from it, is damaged."""
    try:
        if not path.is_file():  # reading a pipe would never end
            raise OSError("no regular file" if path.exists() else "no such file")
        with safe_open(path, framework="pt") as file:
            yield file
    except (OSError, SafetensorError) as error:
        raise UserError(MODEL_DAMAGED.at(str(path), got=str(error))) from None


def unique_tensors(module: nn.Module) -> dict[str, Tensor]:
    """Returns parameters and buffers by name, each tensor once: a tied head appears as its embedding."""
    seen: set[int] = set()
    out = {}
    for name, tensor in module.state_dict(keep_vars=True).items():
        if id(tensor) not in seen:
            seen.add(id(tensor))
            out[name] = tensor.detach()
    return out
