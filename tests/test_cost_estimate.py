"""What `lmmkit check` says of memory, against what is there: exactly, and for activations nearly."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest
import torch

from lmmkit import build
from lmmkit.cost_estimate import Load, checkpoint_bytes, checkpoint_room, estimate
from lmmkit.optimizers import build_optimizer
from lmmkit.plan.prepare import prepare
from lmmkit.training.checkpoint import manifest, read, state_dict
from lmmkit.training.run import train
from tests.conftest import PLAIN

WIDE = "model.text={width: 64, depth: 2, heads: 2, mlp: 160, context: 256}"
LORA = "stages.finetune.train={connector: {}, text: {lora: {r: 4, alpha: 8, dropout: 0.1}}}"
PROJECTOR = "stages.pretrain.train={connector: {}}"
FROZEN = "numerics.frozen=bfloat16"
CASES = {
    "whole": ["stages.finetune.train={connector: {}, text: {}}"],
    "low rank": [LORA, PROJECTOR],
    "low rank, frozen narrow": [LORA, PROJECTOR, FROZEN],
    "8 bits": ["stages.finetune.optim.kind=adamw8bit"],
}


@pytest.mark.parametrize("case", CASES)
def test_weights_gradients_and_optimizer_are_estimated_exactly(tiny, case):
    prepared = prepare(tiny(WIDE, *CASES[case], text=PLAIN))
    recipe, stage = prepared.recipe, prepared.recipe.stages["finetune"]
    estimated = estimate(prepared, "finetune", flops=1e12)["bytes"]
    objective = build.build_objective(
        recipe, {}, prepared.dims, torch.device("cpu"), narrow=build.frozen_narrow(recipe)
    )
    trainable = build.set_stage(objective, prepared.plans["finetune"], stage, seed=0)
    optimizer = build_optimizer(objective, stage, trainable)
    for parameters in trainable.values():
        for p in parameters:
            p.grad = torch.ones_like(p)
    gradients = sum(p.grad.nbytes for p in objective.parameters() if p.grad is not None)
    optimizer.step()
    kept = sum(
        slots[slot].nbytes
        for key, slots, slot in state_dict._slots(objective, optimizer)
        if ".step" not in key
    )
    assert estimated["weights"] == sum(p.nbytes for p in objective.parameters())
    assert (estimated["gradients"], estimated["optimizer"]) == (gradients, kept)
    assert estimated["all"] == sum(n for sort, n in estimated.items() if sort != "all")


@pytest.mark.parametrize("case", ["low rank, frozen narrow", "8 bits"])
def test_room_for_checkpoints_is_what_they_take(tiny, tmp_path, case):
    short = [f"stages.{stage}.length.steps=1" for stage in ("pretrain", "finetune")]
    recipe = tiny(WIDE, *CASES[case], *short, "output.save_every=1", text=PLAIN)
    run = train(recipe, out=tmp_path / "run").run
    sizes = checkpoint_bytes(prepare(recipe))
    for (own, frozen), path in zip(sizes, reversed(read.steps(run)), strict=True):
        shards = sum(file.stat().st_size for file in path.glob("shard-*"))
        assert own <= shards <= own + 100_000, "and the files' headers"
        folder = manifest.examine(path).frozen
        assert (folder is None) == (frozen == 0)
        for copy in manifest.COPIES if folder is not None else ():
            home = run.checkpoints / folder
            shared = sum(file.stat().st_size for file in home.glob(f"{copy}-*"))
            assert frozen <= shared <= frozen + 100_000
    taken = sum(file.stat().st_size for file in run.checkpoints.rglob("*.safetensors"))
    files = len(list(run.checkpoints.rglob("*.safetensors")))
    assert taken <= checkpoint_room(sizes, keep=1) + 20_000 * files, "and the files' headers"
    assert taken > checkpoint_room(sizes, keep=0)


def test_room_counts_the_frozen_weights_of_every_stage_that_checkpoints_are_from():
    assert checkpoint_room([(10, 0)], keep=2) == 30
    assert checkpoint_room([(10, 100)], keep=5) == 60 + 200
    assert checkpoint_room([(1, 100), (50, 2)], keep=2) == 1 + 50 + 50 + 2 * 102, (
        "where the second stage begins"
    )
    assert checkpoint_room([(1, 20), (50, 2)], keep=2) == 150 + 2 * 2, "later in it"
    assert checkpoint_room([(1, 9), (1, 9), (1, 9), (1, 9)], keep=2) == 3 + 2 * 27


def test_a_micro_batch_is_full_where_a_step_is_cut(tiny):
    pipeline = prepare(tiny(text=PLAIN)).pipeline("finetune")
    step = pipeline.step(0)
    (batch,) = step
    assert Load.of([step], 4096) == Load(len(batch), len(batch.pixels_ICXY), len(batch.target_S))
    cut = Load.of([[batch, batch]], 10 * len(batch))
    full = (10 * n for n in (len(batch), len(batch.pixels_ICXY), len(batch.target_S)))
    assert cut == Load(*full, batches=2)


def test_activations_follow_rows_recomputation_and_what_learns(tiny):
    def activations(*overrides: str) -> int:
        return estimate(prepare(tiny(WIDE, *overrides, text=PLAIN)), "finetune", flops=1e12)["bytes"][
            "activations"
        ]

    whole = activations(*CASES["whole"])
    assert activations(*CASES["whole"], "speed.recompute=all") < whole
    assert activations(*CASES["whole"], "stages.finetune.batch.samples=8") > 1.7 * whole
    assert activations("stages.finetune.train={connector: {}}", PROJECTOR) < whole
    assert activations("stages.finetune.train={vision: {}, connector: {}, text: {}}") > whole
    assert activations(*CASES["whole"], "numerics.compute=bfloat16") < whole
    lean, wide = (activations(LORA, PROJECTOR, "numerics.compute=bfloat16", *more) for more in ([FROZEN], []))
    assert lean < wide, "autocast keeps a copy of a frozen float32 matrix"


PROBE = """
import gc, json, sys, threading, time
from pathlib import Path
import torch
from lmmkit import build
from lmmkit.cost_estimate import Load, activation_bytes, estimate
from lmmkit.optimizers import build_optimizer
from lmmkit.plan.prepare import prepare
from lmmkit.recipe import read_text
from lmmkit.training.step import run_step
from tests.conftest import PLAIN
def anon():
    line = next(l for l in open("/proc/self/status") if l.startswith("RssAnon"))
    return int(line.split()[1]) * 1024
torch.set_num_threads(2)
prepared = prepare(read_text(PLAIN, name="t", overrides=sys.argv[2:], root=Path(sys.argv[1])))
recipe, cpu, pipeline = prepared.recipe, torch.device("cpu"), prepared.pipeline("finetune")
section, estimated = recipe.stages["finetune"], estimate(prepared, "finetune", flops=1e12)["bytes"]
steps = [pipeline.step(i) for i in range(2)]
gc.collect(); before, peak, done = anon(), [0], False
def watch():
    while not done:
        peak[0] = max(peak[0], anon()); time.sleep(0.002)
thread = threading.Thread(target=watch); thread.start()
objective = build.build_objective(recipe, {}, prepared.dims, cpu, pretrained=prepared.pretrained, narrow=build.frozen_narrow(recipe))
trainable = build.set_stage(objective, prepared.plans["finetune"], section, seed=0)
optimizer = build_optimizer(objective, section, trainable)
objective.train(); build.set_layers(objective, recipe.speed)
for step in steps:
    run_step(objective, optimizer, step, {"next_token": 1.0}, clip=None, device=cpu, metrics=False)
done = True; thread.join()
full = max((b for s in steps for b in s), key=len)
load = Load(len(full), len(full.pixels_ICXY), len(full.target_S))
activations = activation_bytes(recipe, section, objective, load)
print(json.dumps({"estimated": estimated["all"] - estimated["activations"] + activations, "measured": peak[0] - before}))
"""
FREES = {"MALLOC_MMAP_THRESHOLD_": "65536"}  # what is freed goes back, so that what is left is what lives


def probe(scenes, *overrides: str) -> tuple[int, int]:
    """Returns (bytes estimated, bytes measured) of training steps of a 12M-parameter model."""
    size = ["model.text={width: 384, depth: 6, heads: 6, mlp: 1024, context: 512}", "speed.tokens=1470",
            "stages.finetune.batch.samples=24", PROJECTOR, *overrides]  # fmt: skip
    command = [sys.executable, "-c", PROBE, str(scenes), *size]
    output = subprocess.run(
        command, capture_output=True, text=True, check=True, env=os.environ | FREES
    ).stdout
    found = json.loads(output.splitlines()[-1])
    print(f"{overrides}: estimated {found['estimated'] / 1e6:.0f} MB, measured {found['measured'] / 1e6:.0f} MB: "
          f"{found['estimated'] / found['measured']:.2f} x")  # fmt: skip
    return found["estimated"], found["measured"]


@pytest.mark.slow
@pytest.mark.parametrize("recompute", ["none", "all"])
@pytest.mark.parametrize("case", ["whole", "low rank", "low rank, frozen narrow"])
def test_a_step_takes_what_is_estimated(scenes, case, recompute):
    estimated, measured = probe(scenes, *CASES[case], f"speed.recompute={recompute}")
    assert 0.95 * measured < estimated < 1.25 * measured


@pytest.mark.slow
def test_frozen_bfloat16_saves_what_is_estimated(scenes, tmp_path):
    import transformers as hf

    width, depth, mlp = 768, 12, 2048
    shape = {
        "hidden_size": width,
        "num_hidden_layers": depth,
        "num_attention_heads": 8,
        "intermediate_size": mlp,
    }
    hf.LlamaForCausalLM(hf.LlamaConfig(**shape, vocab_size=1000)).save_pretrained(tmp_path / "text")
    big = [f"model.text={{from: {tmp_path / 'text'}, context: 512}}", "speed.recompute=all",
           "stages.finetune.batch.samples=2", LORA]  # fmt: skip
    (_, wide), (estimated, lean) = probe(scenes, *big), probe(scenes, *big, FROZEN)
    linears = depth * (4 * width**2 + 3 * width * mlp)
    assert wide - lean > 0.9 * 2 * linears, "at no time wide: not while it is read either"
    assert 0.95 * lean < estimated < 1.25 * lean
