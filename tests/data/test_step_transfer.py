"""A step from a worker is the same step, in one block of memory."""

from __future__ import annotations

from dataclasses import dataclass, fields, is_dataclass

import numpy as np
import pytest
import torch
from torch import Tensor

from lmmkit.data import step_transfer
from lmmkit.data.step_transfer import from_block, to_block
from lmmkit.plan.prepare import prepare


@dataclass(frozen=True)
class Pair:
    a: Tensor
    b: object


def there_and_back(value):
    return from_block(to_block(value))


def same(a, b):
    """Compares two values part by part: types, tensors with their strides, arrays."""
    if isinstance(a, Tensor):
        return a.dtype == b.dtype and a.stride() == b.stride() and torch.equal(a, b)
    if isinstance(a, np.ndarray):
        return np.array_equal(a, b)
    if is_dataclass(a):
        return type(a) is type(b) and all(same(getattr(a, f.name), getattr(b, f.name)) for f in fields(a))
    if isinstance(a, tuple | list):
        return type(a) is type(b) and len(a) == len(b) and all(map(same, a, b))
    if isinstance(a, dict):
        return list(a) == list(b) and all(same(a[key], b[key]) for key in a)
    return a == b


@pytest.mark.parametrize("stage", ["pretrain", "finetune"])
def test_a_step_is_the_same_afterwards(tiny, stage):
    pipeline = prepare(tiny("speed.tokens=60")).pipeline(stage)
    for i in range(2):
        step = pipeline.step(i)
        assert len(step) > 1
        sent = to_block(step)
        assert sent.block.is_shared()
        got = from_block(sent)
        assert same(step, got)
        assert all(vars(batch.attention)["calls"] is not None for batch in got), "computed in the worker"
        assert got[0].forest is got[0].last.forest, "one object stays one"


def test_views_of_one_tensor_keep_strides_and_take_its_memory_once():
    whole = torch.arange(10_000, dtype=torch.int64).view(100, 100)
    value = Pair(whole.t(), [whole[3], whole[:, 5], {"x": whole}, (torch.tensor([True]),)])
    sent = to_block(value)
    assert same(from_block(sent), value)
    assert len(sent.block) < 1.1 * whole.nbytes


@pytest.mark.parametrize("dtype", [torch.bool, torch.uint8, torch.int32, torch.bfloat16, torch.float64])
def test_every_dtype_keeps_its_values(dtype):
    odd = [torch.ones(n, dtype=torch.uint8) for n in (1, 3, 0)]
    value = [*odd, torch.arange(7).to(dtype), torch.empty(0, 3, dtype=dtype), torch.tensor(1).to(dtype)]
    assert same(there_and_back(value), value)


def test_a_step_without_tensors():
    assert there_and_back((1, "a", {"b": None})) == (1, "a", {"b": None})


def test_memory_that_the_system_refuses_is_an_error_of_the_system(monkeypatch):
    def refuse(self):
        raise RuntimeError("unable to open shared memory object </torch_1>: Too many open files (24)")

    monkeypatch.setattr(step_transfer.Tensor, "share_memory_", refuse)
    with pytest.raises(OSError, match="Too many open files"):
        to_block([torch.ones(3)])
