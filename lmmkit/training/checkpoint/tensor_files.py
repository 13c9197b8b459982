"""Tensors of a checkpoint in files: what each rank writes of them, and any rows of them read back.

A file is a safetensors file, written here and not by the library: its crc32 is summed on the way, so
that nothing is read back, and the interpreter is left free while a thread writes. Only the first
dimension is ever cut, so that a part is a stretch of rows.
"""

from __future__ import annotations

import json
import zlib
from collections.abc import Collection, Iterable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import safe_open
from torch import Tensor

from lmmkit.training.checkpoint import manifest
from lmmkit.training.distributed.fsdp import local_rows, owns
from lmmkit.training.distributed.process_group import Ranks
from lmmkit.weights.tensor_reader import DTYPES

NAMES = {dtype: name for name, dtype in DTYPES.items()}
CHUNK = 8 << 20  # bytes written at a time

Pieces = dict[str, list[list]]  # key -> [[file, first row, rows], ...], of tensors that are cut


Mark = tuple[int, int]  # where a tensor lies, and how often it has been written to


class TensorSlice(NamedTuple):
    """Rows of a tensor from `first` on; `cut` if they are not all of it. `mark` tells whether one that does
    not learn is as it was; None of one that learns."""

    tensor: Tensor
    first: int
    cut: bool
    mark: Mark | None = None


@dataclass(frozen=True)
class HeldTensors:
    """What one rank writes of a checkpoint's tensors, and the layout of the whole ones."""

    parts: Mapping[str, TensorSlice]
    layout: manifest.Layout

    @property
    def nbytes(self) -> int:
        """Of this rank's parts."""
        return sum(part.tensor.nbytes for part in self.parts.values())

    @property
    def learning(self) -> dict[str, TensorSlice]:
        """Parts that the next update changes, and all that is not known to stay."""
        return {key: part for key, part in self.parts.items() if part.mark is None}

    @property
    def lasting(self) -> dict[str, TensorSlice]:
        """The others."""
        return {key: part for key, part in self.parts.items() if part.mark is not None}

    def copied(self, before: HeldTensors | None = None) -> HeldTensors:
        """The same with what learns in memory of its own on the host: what is trained next does not touch
        it. The memory of an earlier copy serves again, where it is of the same parts."""
        again = before.parts if before is not None else {}
        parts = self.lasting
        for key, part in self.learning.items():
            own = again[key].tensor if key in again else None
            if own is None or (own.shape, own.dtype) != (part.tensor.shape, part.tensor.dtype):
                own = torch.empty(part.tensor.shape, dtype=part.tensor.dtype)
            parts[key] = part._replace(tensor=own.copy_(part.tensor))
        return replace(self, parts={key: parts[key] for key in self.parts})


def hold(tensors: Mapping[str, Tensor], ranks: Ranks, frozen: Collection[str] = ()) -> HeldTensors:
    """This rank's share: the rows it holds of what is cut; the rest is the first rank's. `frozen`: those that
    do not learn."""
    parts = {}
    for key, tensor in tensors.items():
        local, first = local_rows(tensor.detach())
        cut = local.shape != tensor.shape
        if owns(tensor, ranks) and (not cut or len(local)):
            mark = (local.data_ptr(), local._version) if key in frozen else None
            parts[key] = TensorSlice(local, first, cut, mark)
    return HeldTensors(parts, manifest.layout(tensors))


def write(path: Path, tensors: Mapping[str, Tensor]) -> list[int]:
    """Writes a safetensors file; its size and crc32."""
    header: dict[str, Any] = {}
    end = 0
    for key, tensor in tensors.items():
        start, end = end, end + tensor.nbytes
        header[key] = {
            "dtype": NAMES[tensor.dtype],
            "shape": list(tensor.shape),
            "data_offsets": [start, end],
        }
    text = json.dumps(header, separators=(",", ":")).encode()
    text = text.ljust(-(-len(text) // 8) * 8)
    size = crc = 0
    with path.open("wb", buffering=0) as file:
        for chunk in _chunks(len(text).to_bytes(8, "little") + text, tensors.values()):
            crc = zlib.crc32(chunk, crc)
            while chunk:
                written = file.write(chunk)
                size, chunk = size + written, chunk[written:]
    return [size, crc]


def _chunks(head: bytes, tensors: Iterable[Tensor]) -> Iterator[memoryview]:
    yield memoryview(head)
    for tensor in tensors:
        flat = tensor.detach().cpu().contiguous().view(-1).view(torch.uint8)
        data = flat.numpy().data
        for start in range(0, len(data), CHUNK):
            yield data[start : start + CHUNK]


class SavedTensors(Mapping[str, Tensor]):
    """A checkpoint's tensors by name. Each is read when it is asked for, or only some of its rows."""

    def __init__(self, folder: Path, body: Mapping[str, Any]):
        """`body`: its manifest. Raises what the library does for a file that is none of its own."""
        self._layout: manifest.Layout = body["tensors"]
        self._pieces: Pieces = {}
        self._files: dict[str, Any] = {}
        self._stack = ExitStack()
        cut = body.get("parts", {})
        for name in sorted(body["files"]):
            if name.startswith("shard-"):
                self._files[name] = self._stack.enter_context(safe_open(folder / name, framework="pt"))
                for key in list(self._files[name].keys()):
                    self._pieces.setdefault(key, cut.get(key) or [[name, 0, None]])
        if lacking := self._layout.keys() ^ self._pieces.keys():
            raise ValueError(f"tensors listed and not there, or there and not listed: {sorted(lacking)[:3]}")
        if wrong := [key for key in self._pieces if not self._as_listed(key)]:
            raise ValueError(f"tensors of another type or shape than listed: {sorted(wrong)[:3]}")

    def _as_listed(self, key: str) -> bool:
        dtype, sizes = self._layout[key]
        for name, _, n in self._pieces[key]:
            held = self._files[name].get_slice(key)
            as_held = str(DTYPES.get(held.get_dtype())).removeprefix("torch.")
            if [as_held, held.get_shape()] != [dtype, sizes if n is None else [n, *sizes[1:]]]:
                return False
        return True

    def __getitem__(self, key: str) -> Tensor:
        _, shape = self._layout[key]
        return self.rows(key, 0, shape[0]) if shape else self._files[self._pieces[key][0][0]].get_tensor(key)

    def __iter__(self) -> Iterator[str]:
        return iter(self._layout)

    def __len__(self) -> int:
        return len(self._layout)

    def rows(self, key: str, first: int, count: int) -> Tensor:
        """`count` rows from `first` on, out of as many files as they lie in; no others are read."""
        (file, start, n), *more = pieces = self._pieces[key]
        if n is None or (not more and (start, n) == (first, count)):
            whole = n is None and [first, count] == [0, self._layout[key][1][0]]
            handle = self._files[file]
            return (
                handle.get_tensor(key)
                if whole or n is not None
                else handle.get_slice(key)[first : first + count]
            )
        found = []
        for file, start, n in pieces:
            low, high = max(first, start), min(first + count, start + n)
            if low < high:
                found.append(self._files[file].get_slice(key)[low - start : high - start])
        return torch.cat(found) if len(found) != 1 else found[0]
