"""Runs on 1, 2 and 3 ranks: the same samples, the same figures, every parameter reached."""

from __future__ import annotations

import json
import os
import shutil
import signal
import time
import zlib
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor, Shard

from lmmkit import build
from lmmkit.cost_estimate import estimate, staged, whole_parameters
from lmmkit.data.pipeline import Pipeline
from lmmkit.errors import Problem, UserError
from lmmkit.objective import Objective
from lmmkit.optimizers import build_optimizer
from lmmkit.plan.prepare import prepare
from lmmkit.recipe import Recipe
from lmmkit.runs.run_folder import RunFolder
from lmmkit.training.checkpoint import read, state_dict, write
from lmmkit.training.checkpoint.rng import rng_state
from lmmkit.training.checkpoint.tensor_files import rank_slices
from lmmkit.training.distributed import fsdp
from lmmkit.training.distributed.process_group import ALONE, Ranks, joined
from lmmkit.training.run import train
from lmmkit.training.signals import exit_code
from lmmkit.weights.model_folder import unique_tensors
from tests.conftest import MODEL, PLUGINS
from tests.support import local_ranks
from tests.training.test_run import figures

SLOW = pytest.mark.slow
NEAR = 1e-6  # relative, of any figure that is logged
MIXED = (
    MODEL.replace("depth: 2", "depth: 1")
    + PLUGINS.replace("  text_order:     {}\n", "")
    + """
stages:
  only:
    data:   {mixed: 1.0}
    batch:  {samples: 5}
    length: {steps: 10}
    train:  {vision: {}, connector: {}, text: {}, plugins: {}}
    optim:  {lr: 2.0e-3, weight_decay: 0.01, clip: 1.0, warmup: 1}
    losses: {next_token: 1.0, image_order: 1.0, guided_loss: 0.5}
output: {save_every: 0}
speed: {tokens: 160, threads: 1}
"""
).replace(
    "data:\n",
    "data:\n  mixed: {kind: llava, records: mixed.json, images: ., template: vicuna_v1, image_fit: pad}\n",
    1,
)


@pytest.fixture
def mixed(tiny, scenes):
    """Writes records with an image and records without, in steps that no number of ranks divides."""
    rows = json.loads((scenes / "finetune.json").read_text())[:40]
    for row in rows[::2]:
        del row["image"]
        for turn in row["conversations"]:
            turn["value"] = turn["value"].replace("<image>", "Say it.").strip()
    (scenes / "mixed.json").write_text(json.dumps(rows))
    return lambda *overrides: tiny(*overrides, text=MIXED)


def trained(n: int, recipe: Recipe, folder: Path, **options) -> RunFolder:
    """Trains on `n` ranks, below `folder`."""
    local_ranks.run(n, lambda rank: train(recipe, out=folder / "run", **options) and None, folder)
    return RunFolder(folder / "run")


def assert_near(run: RunFolder, one: RunFolder, rel: float = NEAR) -> None:
    a, b = figures(run), figures(one)
    assert len(a) == len(b)
    for mine, theirs in zip(a, b, strict=True):
        assert mine.keys() == theirs.keys()
        for key, value in theirs.items() - {("tokens", theirs["tokens"])}:  # rows, fewer where prompts meet
            want = pytest.approx(value, rel=rel, abs=1e-12) if isinstance(value, float) else value
            assert mine[key] == want, (mine["step"], key)


def model_of(run: RunFolder, stage: str) -> dict[str, torch.Tensor]:
    return load_file(run.model(stage) / "model.safetensors")


def test_plain_values_are_agreed_on(tmp_path):
    def body(rank):
        with joined() as ranks:
            assert (ranks.world, ranks.rank, ranks.first) == (3, rank, rank == 0)
            assert ranks.gather({"rank": rank, "long": "x" * rank * 5000}) == [
                {"rank": r, "long": "x" * r * 5000} for r in range(3)
            ]
            assert ranks.all_reduce_max(rank * 7) == 14 and ranks.broadcast(rank + 40) == 40
            assert ranks.new_group().gather([float("inf"), None]) == [[float("inf"), None]] * 3

    local_ranks.run(3, body, tmp_path)
    assert (
        ALONE.gather(1) == [1]
        and ALONE.all_reduce_max(3) == 3
        and ALONE.broadcast("x") == "x"
        and ALONE.new_group() is ALONE
    )


@pytest.mark.parametrize(
    ("n", "parallel"),
    [
        (2, "{}"),
        pytest.param(2, "{exchange: micro_batch}", marks=SLOW),
        pytest.param(3, "{}", marks=SLOW),
        pytest.param(2, "{shard: 1}", marks=SLOW),
        pytest.param(4, "{shard: 2}", marks=SLOW),
    ],
)
def test_mixed_rows_give_one_process_s_figures_on_any_number_of_ranks(mixed, tmp_path, n, parallel):
    recipe = mixed(f"parallel={parallel}")
    pipeline = prepare(recipe).pipeline("only")
    seen = [[len(batch.views_of("image_order")) for batch in pipeline.step(i)] for i in range(10)]
    shares = [
        [sum(len(b.pixels_ICXY) for b in replace(pipeline, rank=r, world=2).step(i)) for r in (0, 1)]
        for i in range(10)
    ]
    assert any(min(pair) == 0 < max(pair) for pair in shares), "a rank without images beside one with"
    assert any(len(step) > 2 for step in seen), "steps of several micro-batches"
    one = train(recipe, out=tmp_path / "one").run
    start = unique_tensors(
        build.build_objective(
            recipe, prepare(recipe).instances.components, prepare(recipe).dims, torch.device("cpu")
        )
    )
    run = trained(n, recipe, tmp_path / str(n))
    assert_near(run, one)
    ours, theirs = model_of(run, "only"), model_of(one, "only")
    assert ours.keys() == theirs.keys()
    for name, tensor in ours.items():
        assert not torch.equal(tensor, start[name]), f"{name} has not moved"
        if not name.endswith(
            "qkv.bias"
        ):  # a bias of keys has no gradient but rounding, which Adam makes large
            assert (tensor - theirs[name]).norm() <= 1e-4 * theirs[name].norm(), name


LEAN = (
    MODEL
    + """
numerics: {frozen: bfloat16}
stages:
  first:
    data:   {mixed: 1.0}
    batch:  {samples: 4}
    length: {steps: 3}
    train:  {connector: {}}
    optim:  {lr: 2.0e-3, warmup: 1}
    losses: {next_token: 1.0}
  second:
    data:   {mixed: 1.0}
    batch:  {samples: 4}
    length: {steps: 3}
    train:  {connector: {}, text: {lora: {r: 4, alpha: 8}}}
    optim:  {lr: 2.0e-3, clip: 1.0, warmup: 1}
    losses: {next_token: 1.0}
output: {save_every: 0, images_every: 3}
speed: {threads: 1, recompute: all}
"""
).replace(
    "data:\n",
    "data:\n  mixed: {kind: llava, records: mixed.json, images: ., template: vicuna_v1, image_fit: pad}\n",
    1,
)


def test_low_rank_over_frozen_bfloat16_with_recomputation(mixed, tiny, tmp_path):
    """Trains two stages, merged in between, with a frozen encoder that is whole on every rank.

    A rank may go without the encoder. Frozen blocks are gathered for a backward pass, also on ranks
    without images.
    """
    recipe = tiny(text=LEAN)
    one = train(recipe, out=tmp_path / "one").run
    run = trained(2, recipe, tmp_path / "two")
    assert_near(run, one)
    assert {p.name for p in run.model("second").iterdir()} == {p.name for p in one.model("second").iterdir()}
    for stage in ("first", "second"):
        ours, theirs = model_of(run, stage), model_of(one, stage)
        assert {k: (t.dtype, t.shape) for k, t in ours.items()} == {
            k: (t.dtype, t.shape) for k, t in theirs.items()
        }
        for name, tensor in ours.items():
            torch.testing.assert_close(tensor.float(), theirs[name].float(), rtol=1e-2, atol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("n", [2, 3])
def test_rows_that_cannot_be_read_are_passed_over_by_all_ranks_as_by_one(mixed, scenes, tmp_path, n):
    recipe = mixed("data.mixed.bad_records=skip")
    rows = json.loads((scenes / "mixed.json").read_text())
    for number in (3, 11, 25):  # of those with an image
        (scenes / f"broken-{number}.png").write_bytes(b"no image")
        rows[number]["image"] = f"broken-{number}.png"
    (scenes / "mixed.json").write_text(json.dumps(rows))
    one = train(recipe, out=tmp_path / "one").run
    many = trained(n, recipe, tmp_path / str(n))
    assert_near(many, one)
    lists = [sorted(run.bad_records.read_text().splitlines()) for run in (one, many)]
    assert lists[0] == lists[1] and len(lists[0]) >= 3
    assert sum(m.get("dropped/bad_records", 0) for m in many.read_metrics()) == len(lists[1])


def _stepped(recipe, ranks):
    """Returns an objective of all ranks and its optimizer, after an update that draws from no batch."""
    prepared = prepare(recipe)
    if ranks.alone:
        objective = build.build_objective(
            recipe, prepared.instances.components, prepared.dims, torch.device("cpu")
        )
        trainable = build.set_stage(
            objective, prepared.plans["only"], recipe.stages["only"], seed=recipe.seed
        )
    else:
        objective, trainable = fsdp.sharded(prepared, "only", ranks, torch.device("cpu"))
    optimizer = build_optimizer(objective, recipe.stages["only"], trainable)
    state_dict._allocate(optimizer)
    return objective, optimizer


def _marked(key: str, tensor: torch.Tensor) -> torch.Tensor:
    """Values that tell a tensor and a row from every other."""
    return (
        torch.arange(tensor.numel(), dtype=torch.float64).view(tensor.shape) + zlib.crc32(key.encode()) % 977
    ).to(tensor.dtype)


@pytest.mark.parametrize(
    ("before", "after"), [(2, 3), *(pytest.param(*pair, marks=SLOW) for pair in ((2, 1), (1, 2), (3, 2)))]
)
def test_a_checkpoint_comes_back_on_another_number_of_ranks(mixed, tmp_path, before, after):
    recipe, run = mixed(), RunFolder(tmp_path / "run")
    run.path.mkdir()

    def fill(rank):
        with joined() as ranks:
            held = state_dict.state_tensors(*_stepped(recipe, ranks))
            for key, tensor in held.items():
                local, first = fsdp.local_rows(tensor)
                marked = _marked(key, torch.empty(tensor.shape, dtype=tensor.dtype))
                local.copy_(marked[first : first + len(local)] if local.ndim else marked)
            write.put(run, 7, rank_slices(held, ranks), {"at": 7}, keep=2, rng=rng_state(), ranks=ranks)

    def read_checkpoint(rank):
        with joined() as ranks:
            path = read.newest(run, ranks).path
            assert path is not None
            saved = read.load(path, spoiled=(), ranks=ranks)
            assert saved.state == {"at": 7} and not saved.rng, "another number of ranks draws again"
            objective, optimizer = _stepped(recipe, ranks)
            state_dict.restore_state(objective, optimizer, saved)
            for key, tensor in state_dict.state_tensors(objective, optimizer).items():
                whole = fsdp.gather_full(tensor)
                assert torch.equal(whole, _marked(key, whole)), key

    local_ranks.run(before, fill, tmp_path / "before")
    local_ranks.run(after, read_checkpoint, tmp_path / "after")
    (path,) = run.checkpoints.iterdir()
    assert len(list(path.glob("rng-rank*"))) == before
    whole = read.load(path).tensors  # one process, without any rank
    assert all(torch.equal(tensor, _marked(key, tensor)) for key, tensor in whole.items())


def test_damage_to_one_rank_s_files_is_seen_by_all(tmp_path):
    """Before any tensor is assigned: a lost shard, a foreign one, a flipped bit."""
    run = RunFolder(tmp_path / "run")
    run.path.mkdir()

    def fill(rank):
        with joined() as ranks:
            held = {
                "w": DTensor.from_local(
                    torch.full((2, 3), float(rank)), init_device_mesh("cpu", (3,)), [Shard(0)]
                )
            }
            write.put(run, 1, rank_slices(held, ranks), {}, keep=2, rng=rng_state(), ranks=ranks)

    local_ranks.run(3, fill, tmp_path / "fill")
    path = run.checkpoints / "step-00000001"
    assert torch.equal(read.load(path).tensors["w"][:, 0], torch.tensor([0.0, 0.0, 1.0, 1.0, 2.0, 2.0]))
    middle = path / "shard-rank00001-00000.safetensors"
    content = middle.read_bytes()
    flipped = bytearray(content)
    flipped[-3] ^= 4
    extra = path / "shard-rank00003-00000.safetensors"

    def refused(rank):
        with joined() as ranks:
            read.newest(run, ranks)

    for file, damaged in ((middle, None), (middle, bytes(flipped)), (extra, content)):
        file.unlink(missing_ok=True)
        if damaged is not None:
            file.write_bytes(damaged)
        codes = local_ranks.wait(local_ranks.start(3, refused, tmp_path / "read"))
        outputs = [local_ranks.output_of(tmp_path / "read", rank) for rank in range(3)]
        assert codes == [2, 2, 2] and sum(file.name in text for text in outputs) == 1, outputs
        extra.unlink(missing_ok=True)
        middle.write_bytes(content)
    local_ranks.run(3, refused, tmp_path / "sound")


def test_a_run_goes_on_with_another_number_of_ranks(mixed, tmp_path):
    recipe = mixed("stages.only.length.steps=4", "output.save_every=2", "output.async_save=true")
    run = trained(2, recipe, tmp_path / "two")
    whole = figures(run)
    shutil.rmtree(run.checkpoints / "step-00000004")
    assert train(recipe, out=run.path, resume=True).signal is None
    for mine, theirs in zip(figures(run), whole, strict=True):
        assert mine["loss"] == pytest.approx(theirs["loss"], rel=NEAR)
        assert mine["grad_norm"] == pytest.approx(theirs["grad_norm"], rel=NEAR)


def test_one_rank_is_asked_to_stop_and_all_do(mixed, tmp_path):
    recipe = mixed("stages.only.length.steps=50")

    def body(rank):
        finished = train(recipe, out=tmp_path / "run")
        assert finished.signal is not None
        return exit_code(finished.signal)

    pids = local_ranks.start(2, body, tmp_path)
    metrics, until = tmp_path / "run" / "metrics.jsonl", time.monotonic() + 60
    while not metrics.exists() or not metrics.read_bytes():
        assert time.monotonic() < until
        time.sleep(0.02)
    os.kill(pids[1], signal.SIGTERM)
    assert local_ranks.wait(pids) == [143, 143], [local_ranks.output_of(tmp_path, rank) for rank in (0, 1)]
    run = RunFolder(tmp_path / "run")
    saved = read.newest(run).path
    assert saved is not None and read.step_of(saved) == run.read_metrics()[-1]["step"] < 50


@pytest.mark.parametrize(
    ("how", "code", "words"),
    [
        ("data", 2, "torn/row"),
        ("bug", 1, "ValueError: boom"),
        pytest.param("kill", 3, "ranks/rank-ended", marks=pytest.mark.slow),
    ],
)
def test_one_rank_fails_and_all_end_with_one_message(mixed, tmp_path, monkeypatch, how, code, words):
    recipe, step = mixed(), Pipeline.step_and_skipped

    def spoilt(pipeline, index):
        if pipeline.rank == 1 and how == "data":
            raise UserError(Problem("torn/row", "row 3", "half a row", "a row", "Repair it."))
        return step(pipeline, index)

    def body(rank):
        monkeypatch.setattr(Pipeline, "step_and_skipped", spoilt)
        if rank == 1 and how != "data":
            monkeypatch.setattr(
                Objective,
                "_zero_graph_anchor",
                lambda *args: os.kill(os.getpid(), 9) if how == "kill" else _boom(),
            )
        train(recipe, out=tmp_path / "run")

    start = time.monotonic()
    codes = local_ranks.wait(local_ranks.start(2, body, tmp_path))
    outputs = [local_ranks.output_of(tmp_path, rank) for rank in (0, 1)]
    assert codes == ([3, -9] if how == "kill" else [code, code]), outputs
    assert words in outputs[0 if how == "kill" else 1]
    if how != "kill":
        assert "error" not in outputs[0].lower() and "Traceback" not in outputs[0], outputs[0]
    assert time.monotonic() - start < 30


def _boom():
    raise ValueError("boom")


def test_a_world_that_does_not_fit_is_refused_with_those_that_do(mixed, tmp_path, capsys):
    recipe = mixed("parallel.shard=4", "stages.only.optim.kind=adamw8bit")
    for n, want in ((2, "1 or 4, 8, 12, 16, and so on"), (4, None)):
        with pytest.raises(UserError) as raised:
            fsdp.check_world(recipe, Ranks(world=n, rank=0))
        codes = [p.code for p in raised.value.problems]
        assert codes == ["parallel/process-count"] * (want is not None) + ["parallel/optimizer"]
        assert want is None or raised.value.problems[0].expected == f"a number of processes that fits: {want}"
    fsdp.check_world(recipe, ALONE)
    fsdp.note_idle_keys(recipe, ALONE)
    assert "one process trains alone" in capsys.readouterr().err
    fsdp.check_world(mixed(), Ranks(world=8, rank=0))
    fsdp.note_idle_keys(mixed(), Ranks(world=8, rank=0))
    assert "some of 8 ranks have no work" in capsys.readouterr().err


@pytest.mark.parametrize("exchange", ["step", "micro_batch"])
def test_a_rank_has_the_memory_that_check_estimates(mixed, tmp_path, exchange):
    """Weights, gradients and moments between steps, and gradients as they gather over micro-batches."""
    recipe = mixed("parallel.shard=2", f"parallel.exchange={exchange}", "stages.only.length.steps=1")
    prepared = prepare(recipe)
    estimated = estimate(prepared, "only", flops=1e12)["bytes"]

    def body(rank):
        with joined() as ranks:
            objective, optimizer = _stepped(recipe, ranks)
            held = sum(fsdp.local_rows(p)[0].nbytes for p in objective.parameters())
            moments = sum(
                fsdp.local_rows(slots[slot])[0].nbytes
                for key, slots, slot in state_dict._slots(objective, optimizer)
                if not key.endswith(".step")
            )
            print(json.dumps([held, moments]))

    held, moments = json.loads(local_ranks.run(2, body, tmp_path)[0])
    whole, gathered = whole_parameters(recipe, staged(prepared, "only")[0])
    assert not whole and estimated["weights"] == held + sum(p.nbytes for p in gathered)
    assert estimated["optimizer"] == moments
    values = sum(p.numel() for p in staged(prepared, "only")[0].parameters())
    assert estimated["gradients"] == (4 * values if exchange == "step" else held)
