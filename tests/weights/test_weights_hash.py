"""The hash that tells model folders apart."""

import torch
from safetensors.torch import save_file

from lmmkit.weights.weights_hash import weight_files, weights_hash


def test_it_follows_from_the_weights_alone(tmp_path):
    folders = [tmp_path / name for name in ("a", "b", "c")]
    for folder in folders:
        folder.mkdir()
        value = 2.0 if folder.name == "c" else 1.0
        save_file({"x": torch.full((700_000,), value)}, folder / "model.safetensors")
        (folder / "config.json").write_text(folder.name)
    a, b, c = map(weights_hash, folders)
    assert a == b != c and len(a) == 16
    assert [path.name for path in weight_files(folders[0])] == ["model.safetensors"]
    (folders[1] / "model.safetensors").rename(folders[1] / "other.safetensors")
    assert weights_hash(folders[1]) != a
    assert weights_hash(tmp_path) == weights_hash(tmp_path / "absent") == ""


def test_it_reads_both_ends_of_a_large_file(tmp_path):
    path, hashes = tmp_path / "pytorch_model.bin", set()
    for at in (0, 3 << 20):
        data = bytearray(4 << 20)
        data[at] = 1
        path.write_bytes(data)
        hashes.add(weights_hash(tmp_path))
    path.write_bytes(bytes(4 << 20) + b"1")
    assert len(hashes | {weights_hash(tmp_path)}) == 3
