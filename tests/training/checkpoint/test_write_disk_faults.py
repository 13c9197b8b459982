"""A disk that is full, read-only or damaged in the middle of a run: what was saved stays, the run goes on while it can."""

from __future__ import annotations

import errno
import os
import resource

import pytest
import torch

from lmmkit.errors import MachineError
from lmmkit.plan.prepare import prepare
from lmmkit.runs import files
from lmmkit.runs.run_folder import RunFolder
from lmmkit.training.checkpoint import read, write
from lmmkit.training.checkpoint.rng import rng_state
from lmmkit.training.checkpoint.tensor_files import rank_slices
from lmmkit.training.distributed.process_group import ALONE
from lmmkit.training.monitoring.out_of_memory import naming_memory_keys
from lmmkit.training.run import train
from lmmkit.weights import model_folder
from tests.conftest import PLAIN
from tests.support.killed_runs import end, figures, start

SHORT = (
    "stages.pretrain.length.steps=1", "stages.finetune.length.steps=6", "output.save_every=1", "output.images_every=0",
)  # fmt: skip


def fail_saves(monkeypatch, numbers, code=errno.ENOSPC):
    """Saves of these numbers, from 1, cannot write their state."""
    counted = iter(range(1, 1000))

    def point(name):
        if name == "write state.json" and next(counted) in numbers:
            raise OSError(code, os.strerror(code))

    monkeypatch.setattr(write, "io_point", point)


def steps(run: RunFolder) -> list[int]:
    return sorted(read.step_of(path) for path in run.checkpoints.glob("step-*"))


def test_two_saves_in_a_row_may_fail(tiny, tmp_path, monkeypatch, capsys):
    code = errno.EROFS
    fail_saves(monkeypatch, {2, 3, 5}, code)
    run = train(tiny(*SHORT, text=PLAIN), out=tmp_path / "run").run
    assert steps(run) == [6, 7] and len(run.read_metrics()) == 7
    err = capsys.readouterr().err
    assert "no checkpoint of step 2 (failed 1 of 3)" in err and os.strerror(code) in err
    assert "no checkpoint of step 3 (failed 2 of 3)" in err and "step 5 (failed 1 of 3)" in err


def test_the_third_ends_the_run_and_the_last_checkpoint_stays(tiny, tmp_path, monkeypatch):
    recipe = tiny(*SHORT, text=PLAIN)
    whole = train(recipe, out=tmp_path / "whole").run
    fail_saves(monkeypatch, {4, 5, 6})
    with pytest.raises(MachineError, match="checkpoint/cannot-write") as error:
        train(recipe, out=tmp_path / "run")
    assert error.value.exit_code == 3
    run = RunFolder(tmp_path / "run")
    assert steps(run) == [2, 3] and len(run.read_metrics()) == 6
    monkeypatch.undo()
    train(recipe, out=run.path, resume=True)
    assert figures(run) == figures(whole)


@pytest.mark.parametrize(
    ("since", "through"), [("make the folder", 3), ("", 0)], ids=["later", "from the start"]
)
def test_a_file_size_limit_is_met_like_a_full_disk(tiny, tmp_path, since, through):
    """Takes no step if the limit is there from the start; later, the third save ends the run."""
    recipe = tiny(*SHORT, "stages.pretrain.length.steps=4", text=PLAIN)

    def limit(name):
        if since in name:
            resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))

    assert end(start(recipe, tmp_path / "run", limit)) == 1, "an exception"
    run = RunFolder(tmp_path / "run")
    assert steps(run) == [] and len(run.read_metrics()) == through
    assert not list(run.checkpoints.glob(".*")) and not list(run.path.glob(".*.tmp"))


def test_a_model_folder_that_cannot_be_written_leaves_the_one_before(tmp_path, monkeypatch):
    folder = tmp_path / "model" / "stage"
    write = lambda value: model_folder.write(
        folder, {"w": torch.full((3,), value)}, config={}, recipe=None, tokenizer=None
    )
    write(1.0)

    def point(name):
        if name == failing:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    for module in (model_folder, files):
        monkeypatch.setattr(module, "io_point", point)
    for failing in ("write model.safetensors", "set the old folder aside", "publish the folder"):
        with pytest.raises(MachineError, match="model/cannot-write"):
            write(2.0)
        assert model_folder.tensors(folder, ["w"])["w"].tolist() == [1.0] * 3, failing
        assert [path.name for path in folder.parent.iterdir()] == ["stage"]


@pytest.mark.parametrize("kind", ["flip", pytest.param("extra", marks=pytest.mark.slow)])
def test_a_damaged_checkpoint_is_reported_and_the_one_before_is_used(tiny, tmp_path, caplog, kind):
    recipe = tiny(*SHORT, text=PLAIN)
    run = train(recipe, out=tmp_path / "run").run
    whole = figures(run)
    newest = run.checkpoints / "step-00000007"
    file = newest / "shard-00000.safetensors"
    if kind == "flip":
        content = bytearray(file.read_bytes())
        content[len(content) // 2] ^= 4
        file.write_bytes(content)
    else:
        file = newest / "shard-00001.safetensors"
        file.write_bytes(b"x")
    train(recipe, out=run.path, resume=True)
    assert f"{newest.name}/{file.name}" in caplog.text and "passed over" in caplog.text
    assert figures(run) == whole and steps(run) == [6, 7]
    assert read.newest(run).notices == (), "saved again"


def test_order_is_by_step_and_not_by_the_clock(tmp_path, monkeypatch):
    run = RunFolder(tmp_path)
    for step in (1, 2, 3):
        path = write.put(run, step, rank_slices({"w": torch.zeros(1)}, ALONE), {}, keep=3, rng=rng_state())
        for file in (path, *path.iterdir()):
            os.utime(file, (10**9 - step * 10**6,) * 2)
    assert read.step_of(read.newest(run).path) == 3
    write.put(run, 4, rank_slices({"w": torch.zeros(1)}, ALONE), {}, keep=2, rng=rng_state())
    assert steps(run) == [3, 4]


@pytest.mark.parametrize(
    "raised", [torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"), MemoryError(),
               RuntimeError("[enforce fail at alloc_cpu.cpp] DefaultCPUAllocator: can't allocate memory: you tried")],
)  # fmt: skip
def test_out_of_memory_names_the_step_and_the_keys_to_change(tiny, tmp_path, monkeypatch, raised):
    from lmmkit.training import stage_loop

    def full(*args, **kwargs):
        raise raised

    monkeypatch.setattr(stage_loop, "run_step", full)
    with pytest.raises(MachineError, match="train/out-of-memory") as error:
        train(tiny(*SHORT, text=PLAIN), out=tmp_path / "run")
    (problem,) = error.value.problems
    assert problem.where == "step 1, stage pretrain" and "images" in problem.got and "GiB" in problem.got
    assert "`speed.tokens` below" in problem.hint and "`speed.recompute: all`" in problem.hint


def test_another_runtime_error_stays_what_it_is(tiny):
    with (
        pytest.raises(RuntimeError, match="shapes"),
        naming_memory_keys("here", (), tiny(), torch.device("cpu"), alone=True),
    ):
        raise RuntimeError("shapes do not match")


@pytest.mark.parametrize("alone", [True, False])
def test_eight_bits_are_suggested_only_where_they_can_be_used(tiny, alone):
    step = prepare(tiny(text=PLAIN)).pipeline("pretrain").step(0)
    with (
        pytest.raises(MachineError) as error,
        naming_memory_keys("here", step, tiny(), torch.device("cpu"), alone=alone),
    ):
        raise MemoryError
    assert ("adamw8bit" in error.value.problems[0].hint) == alone
