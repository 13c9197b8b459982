"""Moves the tensors of a step from a data worker to the main process in one block of shared memory.

torch sends each tensor through a file descriptor of its own. A step has about thirty tensors for each
micro-batch, so its open files would grow with the number of micro-batches, up to the limit of the system.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, is_dataclass
from typing import Any

import torch
from torch import Tensor

_ALIGN = 64  # bytes; every dtype can begin at such a place


@dataclass(frozen=True)
class _Place:
    """Describes a tensor in the block; `start` counts elements."""

    dtype: torch.dtype
    start: int
    shape: tuple[int, ...]
    stride: tuple[int, ...]


@dataclass(frozen=True)
class Transferred:
    """Holds a value whose tensors are places in `block`, the only tensor that is sent."""

    block: Tensor
    value: Any


def to_block(value: Any) -> Transferred:
    """Returns `value` with all its tensors in one block of shared memory.

    Raises `OSError` if the system refuses the block: no shared memory left, or too many open files.
    """
    storages: dict[tuple[int, int], tuple[int, torch.UntypedStorage]] = {}
    end = 0

    def placed(tensor: Tensor) -> _Place:
        nonlocal end
        storage = tensor.untyped_storage()
        key = storage.data_ptr(), storage.nbytes()
        if key not in storages:
            storages[key] = end, storage
            end += -(-storage.nbytes() // _ALIGN) * _ALIGN
        start = storages[key][0] // tensor.element_size() + int(tensor.storage_offset())
        return _Place(tensor.dtype, start, tuple(tensor.shape), tensor.stride())

    changed = _mapped(value, Tensor, placed, {})
    try:
        block = torch.empty(max(end, 1), dtype=torch.uint8).share_memory_()
    except RuntimeError as error:
        raise OSError(f"shared memory: {error}") from error
    for start, storage in storages.values():
        whole = torch.empty(0, dtype=torch.uint8).set_(storage)
        block[start : start + len(whole)] = whole
    return Transferred(block, changed)


def from_block(sent: Transferred) -> Any:
    """Returns the value, its tensors with the strides that they had. They share the memory of the block."""
    storage = sent.block.untyped_storage()

    def restored(place: _Place) -> Tensor:
        return torch.empty(0, dtype=place.dtype).set_(storage, place.start, place.shape, place.stride)

    return _mapped(sent.value, _Place, restored, {})


def _mapped(value: Any, kind: type, change: Callable[[Any], Any], done: dict[int, Any]) -> Any:
    """Returns a copy of `value` in which each object of `kind` is changed, inside dataclasses, tuples, lists
    and dicts. An object that occurs twice is one object in the copy."""
    if id(value) in done:
        return done[id(value)]

    def inner(part: Any) -> Any:
        return _mapped(part, kind, change, done)

    if isinstance(value, kind):
        new = change(value)
    elif type(value) is dict:
        new = {key: inner(part) for key, part in value.items()}
    elif isinstance(value, tuple | list):
        parts = [inner(part) for part in value]
        new = type(value)(*parts) if hasattr(value, "_fields") else type(value)(parts)
    elif is_dataclass(value) and not isinstance(value, type) and hasattr(value, "__dict__"):
        new = object.__new__(type(value))
        vars(new).update({name: inner(part) for name, part in vars(value).items()})
    else:
        return value
    done[id(value)] = new
    return new
