"""Reads the tensors of a public model folder one at a time, without a second copy, and runs no code.

It reads safetensors, in one file or in shards with an index. It opens pickled files (`.bin`, `.pt`) only on
request, with torch's weights-only reader, which runs no code from the file.
"""

from __future__ import annotations

import functools
import json
import re
import struct
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from lmmkit.errors import UserError, raise_all
from lmmkit.errors.weights import (
    INDEX,
    NO_WEIGHTS_FILE,
    PATH,
    PICKLE,
    SHARD,
    TENSOR_TWICE,
    TWO_SETS,
    WEIGHTS_DAMAGED,
)
from lmmkit.runs.files import read_json

MAX_HEADER = 100 << 20  # bytes; the limit of the safetensors library
WHOLE = "model.safetensors"
INDEX_FILE = "model.safetensors.index.json"
LOOSE = "non_lora_trainables.bin"
PICKLED = (".bin", ".pt", ".pth")
DTYPES = {
    "F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16,
    "I64": torch.int64, "I32": torch.int32, "I16": torch.int16, "I8": torch.int8, "U8": torch.uint8, "BOOL": torch.bool,
}  # fmt: skip


@dataclass(frozen=True)
class Stored:
    """Describes one tensor on disk: its file, its name there, shape and type. `read` loads it."""

    file: Path
    name: str
    shape: tuple[int, ...]
    dtype: torch.dtype | str
    read: Callable[[], Tensor]


@contextmanager
def opened(folder: Path, *, pickled: bool = False) -> Iterator[dict[str, Stored]]:
    """Yields the tensors of `folder` by name, without loading their values.

    Args:
        folder: a model folder, or a single weights file.
        pickled: whether `.bin` and `.pt` files may be read (weights only).

    Raises:
        UserError: for missing weights, damaged or pickled files, and file names outside the folder.
    """
    with ExitStack() as stack:
        found: dict[str, Stored] = {}
        for file in files(folder, pickled=pickled):
            if not file.is_file():  # reading a pipe or device would never end
                raise _damaged(file, ValueError("no regular file"))
            for name, stored in (_pickled(file) if file.suffix in PICKLED else _safe(file, stack)).items():
                if name in found:
                    got = f"{name}, also in {found[name].file.name}"
                    raise UserError(TENSOR_TWICE.at(str(file), got=got))
                found[name] = stored
        yield found


def files(folder: Path, *, pickled: bool = False) -> list[Path]:
    """Returns the weights files of a folder: those in its index or `model.safetensors`, else those of a
    pickled index, else all safetensors, else pickled ones. Raises `UserError` for two sets of safetensors."""
    if folder.is_file():
        return _allowed([folder], pickled)
    whole, index, old_index = (folder / name for name in (WHOLE, INDEX_FILE, "pytorch_model.bin.index.json"))
    shards = _indexed(index) if index.is_file() else sorted(folder.glob("model-*-of-*.safetensors"))
    if whole.is_file() and (more := [path.name for path in shards if path != whole]):
        raise UserError(TWO_SETS.at(str(folder), got=f"{WHOLE} and {len(more)} shards, such as {more[0]}"))
    if index.is_file():
        return _allowed(shards, pickled)
    if (folder / LOOSE).is_file():  # the other tensors that a low-rank run of LLaVA trained
        return _allowed([*sorted(folder.glob("adapter_model.*")), folder / LOOSE], pickled)
    if whole.is_file():  # other files next to it belong to another library
        return [whole]
    if old_index.is_file():
        return _allowed(_indexed(old_index), pickled)
    if safe := sorted(folder.glob("*.safetensors")):
        return safe
    return _allowed(sorted(p for p in folder.glob("*") if p.suffix in PICKLED), pickled, folder)


def _indexed(index: Path) -> list[Path]:
    names = read_json(index, hint="Download the folder again.").get("weight_map")
    if not isinstance(names, dict) or not names or not all(isinstance(n, str) for n in names.values()):
        raise UserError(INDEX.at(str(index), got="no map from tensors to files"))
    plain = re.compile(r"[\w.-]+")
    raise_all(
        PATH.at(str(index), got=f"the file name {n!r}")
        for n in sorted(set(names.values()))
        if not plain.fullmatch(n) or n.startswith(".")
    )
    paths = [index.parent / n for n in sorted(set(names.values()))]
    raise_all(
        SHARD.at(str(path), got="no such file", index=index.name) for path in paths if not path.is_file()
    )
    return paths


def _allowed(paths: list[Path], pickled: bool, folder: Path | None = None) -> list[Path]:
    if not paths:
        raise UserError(NO_WEIGHTS_FILE.at(str(folder), got="no weights"))
    bad = [path for path in paths if path.suffix in PICKLED and not pickled]
    raise_all(PICKLE.at(str(path), got="a pickled file") for path in bad)
    return paths


def _safe(file: Path, stack: ExitStack) -> dict[str, Stored]:
    """Reads the file's header directly. The safetensors library would map the full file for it."""
    try:
        with open(file, "rb") as stream:
            (size,) = struct.unpack("<Q", stream.read(8))
            if size > MAX_HEADER:
                raise ValueError(f"a header of {size} bytes")
            header = json.loads(stream.read(size))
        header.pop("__metadata__", None)
        expected = 8 + size + max((part["data_offsets"][1] for part in header.values()), default=0)
        if file.stat().st_size != expected:
            raise ValueError(f"{file.stat().st_size} bytes where its header says {expected}")
        read = _Lazy(file, stack)
        return {
            str(name): Stored(
                file, name, tuple(map(int, part["shape"])), DTYPES.get(part["dtype"]) or str(part["dtype"]),
                functools.partial(read, name),
            )
            for name, part in header.items()
        }  # fmt: skip
    except (
        OSError,
        ValueError,
        TypeError,
        LookupError,
        AttributeError,
        struct.error,
        RecursionError,
    ) as error:
        raise _damaged(file, error) from None


class _Lazy:
    """Reads tensors from a file, and opens it at the first read."""

    def __init__(self, file: Path, stack: ExitStack) -> None:
        self.file, self.stack, self.handle = file, stack, None

    def __call__(self, name: str) -> Tensor:
        try:
            if self.handle is None:
                self.handle = self.stack.enter_context(safe_open(self.file, framework="pt"))
            return self.handle.get_tensor(name)
        except (OSError, SafetensorError) as error:
            raise _damaged(self.file, error) from None


def _pickled(file: Path) -> dict[str, Stored]:
    try:
        state = torch.load(file, map_location="cpu", weights_only=True, mmap=True)
    except Exception as error:  # a hostile file can cause any exception
        # torch's message ends with the advice to run the code in the file
        asked = re.search(r"GLOBAL (\S+)", str(error))
        reason = f"a call of {asked[1]}, which is no tensor" if asked else "no weights torch can read"
        raise _damaged(file, ValueError(reason)) from None
    if not isinstance(state, dict) or not all(isinstance(t, Tensor) for t in state.values()):
        raise _damaged(file, ValueError("something else than a mapping from names to tensors"))
    return {name: Stored(file, name, tuple(t.shape), t.dtype, _reader_of(t)) for name, t in state.items()}


def _reader_of(tensor: Tensor) -> Callable[[], Tensor]:
    return lambda: tensor


def _damaged(file: Path, error: Exception) -> UserError:
    reason = str(error).splitlines()[0] if str(error) else type(error).__name__
    return UserError(WEIGHTS_DAMAGED.at(str(file), got=reason))
