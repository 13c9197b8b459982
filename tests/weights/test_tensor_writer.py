"""Files of tensors are those of the safetensors library."""

from __future__ import annotations

import torch

from lmmkit.progress import shown_on
from lmmkit.weights import tensor_writer
from tests.test_progress import Recorder


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


def test_its_bytes_are_those_of_the_library_and_it_shows_how_far_it_is(tmp_path):
    from safetensors.torch import save_file

    one, two = {"b": torch.arange(5.0), "a": torch.ones(3, 2), "e": torch.zeros(())}, {"x": torch.ones(2)}
    for tensors, metadata in ((one, {"format": "pt"}), (two, None)):
        save_file(tensors, tmp_path / "theirs", metadata=metadata)
        tensor_writer.write(tmp_path / "ours", tensor_writer.widest_first(tensors), metadata)
        assert (tmp_path / "ours").read_bytes() == (tmp_path / "theirs").read_bytes()
    mixed = {"bytes": torch.arange(3).byte(), "halves": torch.ones(3).half(), "wide": torch.ones(1)}
    assert list(tensor_writer.widest_first(mixed)) == ["wide", "halves", "bytes"]
    display = Recorder()
    with shown_on(display):
        tensor_writer.write(tmp_path / "large", {"x": torch.zeros(5_000_000)})
    assert display.calls[0] == ("begin", "writing large", 20.0, "MB")
    shares = [call[2] for call in display.calls if call[0] == "move"]
    assert len(shares) == 4 and shares == sorted(shares) and 20 <= shares[-1] < 20.01
