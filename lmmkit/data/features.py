"""What a frozen encoder says of pictures as they are, kept on disk from epoch to epoch and run to run.

A file a picture, named by everything its content depends on: the encoder's weights, the
preprocessing, the bytes of the picture file. A file that is not what was written counts as absent.
"""

from __future__ import annotations

import hashlib
import os
import zlib
from dataclasses import dataclass, field
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

SUFFIX = ".safetensors"
_BYTES = torch.uint8


@dataclass(frozen=True)
class FeatureCache:
    """Features below `folder`, at most `limit` bytes of them; `mark` is of encoder and preprocessing.

    Data workers read, the training process writes, `writers` of them in equal
    shares of the room left. What is full stays as it is: nothing is thrown out.
    """

    folder: Path
    mark: str
    limit: int
    writers: int = 1
    _taken: list[int] = field(default_factory=list, compare=False, repr=False)

    def name(self, path: str, shape: str) -> str:
        """The name of a picture file's features, preprocessed in `shape`."""
        with open(path, "rb") as file:
            content = hashlib.file_digest(file, "blake2b").digest()
        return hashlib.blake2b(f"{self.mark} {shape} ".encode() + content, digest_size=20).hexdigest()

    def get(self, name: str) -> Tensor | None:
        """[N, D], if they are there and whole."""
        try:
            with safe_open(self._path(name), framework="pt") as file:
                x_ND, crc = file.get_tensor("x"), (file.metadata() or {}).get("crc32")
        except (OSError, SafetensorError):
            return None
        return x_ND if crc == _crc(x_ND) else None

    def put(self, name: str, x_ND: Tensor) -> bool:
        """Writes them aside and renames; False where there is no room."""
        if not self._taken:
            held = sum(path.stat().st_size for path in self.folder.glob(f"*/*{SUFFIX}"))
            others = (self.limit - held) // self.writers * (self.writers - 1)
            self._taken.append(held + max(others, 0))
        if self._taken[0] + x_ND.nbytes > self.limit:
            return False
        path, x_ND = self._path(name), x_ND.detach().cpu().contiguous()
        path.parent.mkdir(parents=True, exist_ok=True)
        aside = path.with_name(f".{name}.{os.getpid()}.tmp")
        save_file({"x": x_ND}, aside, metadata={"crc32": _crc(x_ND)})
        self._taken[0] += aside.stat().st_size
        os.replace(aside, path)
        return True

    def _path(self, name: str) -> Path:
        return self.folder / name[:2] / f"{name}{SUFFIX}"


def _crc(x_ND: Tensor) -> str:
    return f"{zlib.crc32(x_ND.contiguous().view(-1).view(_BYTES).numpy().data):08x}"


def digest(tensors: dict[str, Tensor]) -> str:
    """Of names, types and values."""
    found = hashlib.blake2b(digest_size=16)
    for name, tensor in sorted(tensors.items()):
        found.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        found.update(tensor.detach().cpu().contiguous().view(-1).view(_BYTES).numpy().data)
    return found.hexdigest()
