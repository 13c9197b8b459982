"""Tensor files of a checkpoint: the slices that each rank writes, and reading any matrix rows.

The files are safetensors files (`weights/tensor_writer.py`). Tensors are cut only along the first dimension, so
that a slice is a range of matrix rows.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
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

Pieces = dict[str, list[list]]  # key -> [[file, first matrix row, count], ...], of tensors that are cut


class TensorSlice(NamedTuple):
    """Holds the matrix rows of a tensor from `first` on; `cut` if they are not all of them."""

    tensor: Tensor
    first: int
    cut: bool


@dataclass(frozen=True)
class RankSlices:
    """Holds the slices that one rank writes to a checkpoint (`parts`), the layout of the full tensors, and
    the names of those that are frozen."""

    parts: Mapping[str, TensorSlice]
    layout: manifest.TensorLayout
    frozen_names: frozenset[str] = frozenset()

    @property
    def changing(self) -> dict[str, TensorSlice]:
        """Returns this rank's slices that an update may change."""
        return {key: part for key, part in self.parts.items() if key not in self.frozen_names}

    @property
    def frozen(self) -> dict[str, TensorSlice]:
        """Returns this rank's slices of frozen tensors."""
        return {key: part for key, part in self.parts.items() if key in self.frozen_names}

    @property
    def marks(self) -> dict[str, tuple[int, int]]:
        """Returns the address and the version counter of each frozen slice: equal marks mean equal values."""
        return {key: (tensor.data_ptr(), tensor._version) for key, (tensor, _, _) in self.frozen.items()}

    def copied(self, before: RankSlices | None = None) -> RankSlices:
        """Returns a copy whose changing slices are in separate host memory, so that training can continue.
        Reuses the memory of an earlier copy with the same slices."""
        again = before.parts if before is not None else {}
        parts = self.frozen
        for key, part in self.changing.items():
            own = again[key].tensor if key in again else None
            if own is None or (own.shape, own.dtype) != (part.tensor.shape, part.tensor.dtype):
                own = torch.empty(part.tensor.shape, dtype=part.tensor.dtype)
            parts[key] = part._replace(tensor=own.copy_(part.tensor))
        return replace(self, parts={key: parts[key] for key in self.parts})


def rank_slices(tensors: Mapping[str, Tensor], ranks: Ranks, frozen: Collection[str] = ()) -> RankSlices:
    """Returns the slices that this rank saves; uncut tensors are saved by one rank. `frozen`: names."""
    parts = {}
    for key, tensor in tensors.items():
        local, first = local_rows(tensor.detach())
        cut = local.shape != tensor.shape
        if owns(tensor, ranks) and (not cut or len(local)):
            parts[key] = TensorSlice(local, first, cut)
    return RankSlices(parts, manifest.layout(tensors), frozenset(frozen))


def nbytes(parts: Mapping[str, TensorSlice]) -> int:
    """Returns the total bytes of the slices."""
    return sum(part.tensor.nbytes for part in parts.values())


class SavedTensors(Mapping[str, Tensor]):
    """Maps names to the tensors in a checkpoint. Reads a tensor, or some of its matrix rows, on access."""

    def __init__(self, folder: Path, body: Mapping[str, Any], spoiled: Collection[str]):
        """Opens the files. `body`: the manifest; `spoiled`: damaged copies. Raises `ValueError` for
        tensors that differ from the manifest, and safetensors' errors for a file in another format."""
        self._layout: manifest.TensorLayout = body["tensors"]
        self._pieces: Pieces = {}
        self._files: dict[str, Any] = {}
        self._stack = ExitStack()
        cut: Pieces = body.get("parts", {})
        paths = {name: folder / name for name in sorted(body["files"]) if name.startswith("shard-")}
        if (frozen := body.get("frozen")) is not None:
            cut = cut | frozen["parts"]
            for name in sorted(frozen["files"]):
                sound = [copy for copy in manifest.copies(frozen, name) if copy not in spoiled]
                if not sound:
                    raise ValueError(f"both copies of {name} are damaged")
                paths[name] = folder.parent / sound[0]
        for name, path in paths.items():
            self._files[name] = self._stack.enter_context(safe_open(path, framework="pt"))
            for key in list(self._files[name].keys()):
                self._pieces.setdefault(key, cut.get(key) or [[name, 0, None]])
        if lacking := self._layout.keys() ^ self._pieces.keys():
            raise ValueError(f"tensors listed and not there, or there and not listed: {sorted(lacking)[:3]}")
        if wrong := [key for key in self._pieces if not self._as_listed(key)]:
            raise ValueError(f"tensors of another type or shape than listed: {sorted(wrong)[:3]}")

    def _as_listed(self, key: str) -> bool:
        dtype, sizes = self._layout[key]
        for name, _, n in self._pieces[key]:
            stored = self._files[name].get_slice(key)
            as_stored = str(DTYPES.get(stored.get_dtype())).removeprefix("torch.")
            if [as_stored, stored.get_shape()] != [dtype, sizes if n is None else [n, *sizes[1:]]]:
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
        """Returns `count` matrix rows from `first` on. Reads only these, from one or more files."""
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
