"""A model is never held twice while it is read: peak anonymous memory of a random 1B model."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest
import torch
from safetensors.torch import save_file

WIDTH, DEPTH, MLP, VOCAB = 2048, 20, 5632, 32_000
PROBE = """
import gc, sys, threading, time, torch, lmmkit
def anon():
    line = next(l for l in open("/proc/self/status") if l.startswith("RssAnon"))
    return int(line.split()[1]) * 1024
gc.collect(); before, peak, done = anon(), [0], False
def watch():
    while not done:
        peak[0] = max(peak[0], anon()); time.sleep(0.002)
thread = threading.Thread(target=watch); thread.start()
model = lmmkit.load(sys.argv[1], dtype=torch.bfloat16, device="cpu")
done = True; thread.join()
size = sum(p.nbytes for p in model.objective.parameters())
print(size, peak[0] - before)
"""


@pytest.mark.slow
def test_a_billion_parameters_are_held_once(tmp_path):
    draw = torch.Generator().manual_seed(0)

    def random(*shape: int) -> torch.Tensor:
        return torch.rand(shape, generator=draw, dtype=torch.float32).to(torch.bfloat16)

    names = {}
    for shard in range(DEPTH + 1):
        tensors = {}
        if shard == DEPTH:
            tensors["model.embed_tokens.weight"], tensors["lm_head.weight"] = (
                random(VOCAB, WIDTH),
                random(VOCAB, WIDTH),
            )
            tensors["model.norm.weight"] = random(WIDTH)
        else:
            at = f"model.layers.{shard}."
            for name in "qkvo":
                tensors[f"{at}self_attn.{name}_proj.weight"] = random(WIDTH, WIDTH)
            for name in ("gate", "up"):
                tensors[f"{at}mlp.{name}_proj.weight"] = random(MLP, WIDTH)
            tensors[f"{at}mlp.down_proj.weight"] = random(WIDTH, MLP)
            for name in ("input", "post_attention"):
                tensors[f"{at}{name}_layernorm.weight"] = random(WIDTH)
        file = f"model-{shard}.safetensors"
        save_file(tensors, tmp_path / file)
        names |= dict.fromkeys(tensors, file)
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": names}))
    config = {
        "model_type": "llama", "hidden_size": WIDTH, "num_hidden_layers": DEPTH, "num_attention_heads": 16,
        "intermediate_size": MLP, "vocab_size": VOCAB, "torch_dtype": "bfloat16",
    }  # fmt: skip
    (tmp_path / "config.json").write_text(json.dumps(config))
    output = subprocess.run(
        [sys.executable, "-c", PROBE, tmp_path], capture_output=True, text=True, check=True
    ).stdout
    size, peak = map(int, output.split())
    print(f"{size / 1e9:.2f} GB of weights, {peak / 1e9:.2f} GB of memory at the most: {peak / size:.3f} x")
    assert peak <= 1.15 * size
