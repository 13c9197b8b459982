"""Saving beside the loop: what it was, not what it becomes; and no failure is quiet."""

from __future__ import annotations

import threading

import pytest
import torch

from lmmkit.errors import MachineError
from lmmkit.runs.run_folder import RunFolder
from lmmkit.training.checkpoint import read, saver, tensor_files
from lmmkit.training.checkpoint.saver import Saver
from lmmkit.training.distributed.process_group import ALONE, Ranks
from lmmkit.training.run import train
from lmmkit.weights import tensor_writer
from tests.training.test_run import figures


@pytest.fixture
def run(tmp_path):
    run = RunFolder(tmp_path / "run")
    run.path.mkdir()
    return run


def test_what_is_trained_meanwhile_is_not_saved(run, monkeypatch):
    tensor, go = torch.zeros(5), threading.Event()
    write = tensor_writer.write
    monkeypatch.setattr(tensor_writer, "write", lambda *args: go.wait(20) and write(*args))
    with Saver(run, keep=2, ranks=ALONE, in_thread=True) as saver:
        saver.save(1, {"w": tensor}, {})
        tensor += 1
        assert read.newest(run).path is None, "it is under way"
        go.set()
        saver.save(2, {"w": tensor}, {})  # waits for the first: one at most
        assert (run.checkpoints / "step-00000001").exists()
        tensor += 1
    for step, value in ((1, 0.0), (2, 1.0)):
        found = read.load(run.checkpoints / f"step-{step:08d}")
        assert torch.equal(found.tensors["w"], torch.full((5,), value))


@pytest.mark.parametrize("when", ["check", "save", "leaving"])
def test_a_failure_is_raised_where_the_loop_looks(run, monkeypatch, when):
    def full(*args):
        raise OSError("No space left on device")

    monkeypatch.setattr(tensor_writer, "write", full)
    saver = Saver(run, keep=2, ranks=ALONE, in_thread=True)
    with pytest.raises(MachineError, match="No space left"), saver:
        saver.save(1, {"w": torch.zeros(5)}, {})
        if when == "check":
            saver._thread.join()
            saver.check()
        elif when == "save":
            saver.save(2, {"w": torch.zeros(5)}, {})
    assert not list(run.checkpoints.glob("*"))


def test_a_run_ends_when_a_save_beside_it_fails(tiny, tmp_path, monkeypatch):
    write, calls = tensor_writer.write, []

    def once(*args):
        calls.append(1)
        if len(calls) > 2:  # the second checkpoint
            raise OSError("No space left on device")
        return write(*args)

    monkeypatch.setattr(tensor_writer, "write", once)
    short = tiny("output.async_save=true", "output.save_every=1", "stages.pretrain.length.steps=4")
    with pytest.raises(MachineError, match="checkpoint/cannot-write") as raised:
        train(short, out=tmp_path / "run", stage="pretrain")
    assert raised.value.exit_code == 3
    saved = read.newest(RunFolder(tmp_path / "run")).path
    assert saved is not None and read.step_of(saved) == 1


def test_saving_beside_the_loop_changes_no_bit(tiny, tmp_path):
    few = [f"stages.{stage}.length.steps=3" for stage in ("pretrain", "finetune")]
    one = train(tiny(*few), out=tmp_path / "one").run
    two = train(tiny(*few, "output.async_save=true", "output.save_every=1"), out=tmp_path / "two").run
    assert figures(one) == figures(two)
    assert [read.step_of(path) for path in read.steps(two)] == [6, 5]
    ours, theirs = (read.load(read.steps(run)[0]).tensors for run in (one, two))
    assert ours.keys() == theirs.keys() and all(torch.equal(theirs[key], ours[key]) for key in ours)


@pytest.mark.parametrize(("world", "grace", "notices"), [(2, -1.0, 1), (2, 30.0, 0), (1, -1.0, 0)])
def test_a_save_that_torchrun_would_not_wait_for_is_reported_once(
    run, monkeypatch, capsys, world, grace, notices
):
    monkeypatch.setattr(saver, "put", lambda *args, **options: None)
    monkeypatch.setattr(saver, "rank_slices", lambda tensors, ranks, frozen: tensor_files.RankSlices({}, {}))
    monkeypatch.setattr(saver, "_GRACE", grace)
    saves = Saver(run, keep=2, ranks=Ranks(world), in_thread=False)
    for step in (1, 2):
        saves.save(step, {}, {})
    assert capsys.readouterr().err.count("output.save_every") == notices
