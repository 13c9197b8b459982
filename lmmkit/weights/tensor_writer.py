"""Writes safetensors files.

They are written here, not by the library, so that the crc32 is computed during the write without a second read,
and other Python threads can run meanwhile.
"""

from __future__ import annotations

import json
import zlib
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lmmkit.progress import working_bytes
from lmmkit.weights.tensor_reader import DTYPES

NAMES = {dtype: name for name, dtype in DTYPES.items()}
_CHUNK = 8 << 20  # bytes written at a time


def write(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None) -> list[int]:
    """Writes a safetensors file; returns its size and crc32. `metadata`: texts for its header."""
    header: dict[str, Any] = {"__metadata__": dict(metadata)} if metadata else {}
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
    with path.open("wb", buffering=0) as file, working_bytes(f"writing {path.name}", end) as move:
        for chunk in _chunks(len(text).to_bytes(8, "little") + text, tensors.values()):
            crc = zlib.crc32(chunk, crc)
            while chunk:
                written = file.write(chunk)
                size, chunk = size + written, chunk[written:]
            move(size)
    return [size, crc]


def widest_first(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Returns the tensors in the order in which other programs write them: the widest types first, by name."""
    return dict(sorted(tensors.items(), key=lambda item: (-item[1].element_size(), item[0])))


def _chunks(head: bytes, tensors: Iterable[Tensor]) -> Iterator[memoryview]:
    yield memoryview(head)
    for tensor in tensors:
        flat = tensor.detach().cpu().contiguous().view(-1).view(torch.uint8)
        data = flat.numpy().data
        for start in range(0, len(data), _CHUNK):
            yield data[start : start + _CHUNK]
