"""Files of tensors are those of the safetensors library."""

from __future__ import annotations

import torch

from lmmkit.weights import tensor_writer


def test_a_file_is_one_the_library_reads(tmp_path):
    from safetensors.torch import load_file

    tensors = {
        "none": torch.zeros(0, 3), "scalar": torch.tensor(7), "half": torch.arange(6).to(torch.bfloat16),
        "turned": torch.arange(6.0).reshape(2, 3).t(), "flags": torch.tensor([True, False]),
    }  # fmt: skip
    size, _ = tensor_writer.write(tmp_path / "x", tensors)
    assert size == (tmp_path / "x").stat().st_size
    found = load_file(tmp_path / "x")
    assert all(
        torch.equal(found[key], tensor) and found[key].dtype == tensor.dtype
        for key, tensor in tensors.items()
    )
