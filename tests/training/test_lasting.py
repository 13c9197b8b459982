"""What does not learn is written by two checkpoints and linked to by later ones; each stays whole by itself."""

from __future__ import annotations

import os

import pytest
import torch

from lmmkit.runs.run_folder import RunFolder
from lmmkit.training.checkpoint import manifest, read, write
from lmmkit.training.checkpoint.saver import Saver
from lmmkit.training.distributed.process_group import ALONE
from lmmkit.training.run import train
from tests import world
from tests.conftest import PLAIN

FROZEN = "stages.pretrain.train={connector: {}, plugins: {}}"


def frozen_files(run: RunFolder, step: int) -> dict[str, os.stat_result]:
    folder = run.checkpoints / f"step-{step:08d}"
    return {path.name: path.stat() for path in sorted(folder.glob("*frozen*"))}


def inodes(run: RunFolder, step: int) -> list[int]:
    return [stat.st_ino for stat in frozen_files(run, step).values()]


@pytest.fixture
def run(tmp_path):
    run = RunFolder(tmp_path / "run")
    run.path.mkdir()
    return run


def saved(run: RunFolder, steps: int, *, keep: int = 4, beside: bool = False, before=lambda step, base: None):
    """Checkpoints of a tensor that learns and two that do not."""
    base, other, trainable = torch.arange(6.0), torch.ones(2, 3), torch.zeros(3)
    with Saver(run, keep=keep, ranks=ALONE, beside=beside) as saver:
        for step in range(1, steps + 1):
            before(step, base)
            tensors = {"base": base, "other": other, "learns": trainable}
            saver.save(step, tensors, {}, {"base", "other"})
            saver.wait()
            trainable += 1
    return base


@pytest.mark.parametrize("beside", [False, True])
def test_neighbours_share_no_file_and_every_checkpoint_is_whole(run, beside):
    base = saved(run, 4, beside=beside)
    one, two, three, four = (inodes(run, step) for step in (1, 2, 3, 4))
    assert one == three and two == four and not set(one) & set(two) and len(one) == 1
    for step in (1, 2, 3, 4):
        path = run.checkpoints / f"step-{step:08d}"
        assert not manifest.verify(path)
        tensors = read.load(path).tensors
        assert torch.equal(tensors["base"], base) and torch.equal(tensors["other"], torch.ones(2, 3))
        assert torch.equal(tensors["learns"], torch.full((3,), step - 1.0))


def test_damage_to_a_file_leaves_the_checkpoint_before_whole(run):
    saved(run, 5, keep=2)
    newest = next((run.checkpoints / "step-00000005").glob("*frozen*"))
    with newest.open("r+b") as file:
        file.seek(-1, os.SEEK_END)
        file.write(b"\xff")
    found = read.latest(run)
    assert found is not None and read.step_of(found) == 4


def test_what_was_written_to_after_all_is_written_anew(run):
    def move(step, base):
        if step == 3:
            base += 1

    base = saved(run, 3, before=move)
    assert not set(inodes(run, 3)) & {*inodes(run, 1), *inodes(run, 2)}
    assert torch.equal(read.load(run.checkpoints / "step-00000003").tensors["base"], base)


@pytest.mark.parametrize("fault", ["no links", "cut short", "gone"])
def test_where_a_link_cannot_be_the_file_is_written(run, monkeypatch, fault):
    def refuse(*args):
        raise OSError("Operation not permitted")

    if fault == "no links":
        monkeypatch.setattr(write.os, "link", refuse)

    def spoil(step, base):
        if step == 3 and fault != "no links":
            path = next((run.checkpoints / "step-00000001").glob("*frozen*"))
            os.truncate(path, 9) if fault == "cut short" else path.unlink()

    saved(run, 3, before=spoil)
    for step in (2, 3):
        assert not manifest.verify(run.checkpoints / f"step-{step:08d}")
    assert not set(inodes(run, 3)) & set(inodes(run, 2)) and len(inodes(run, 3)) == 1


def test_no_room_is_asked_for_what_is_linked(run, monkeypatch):
    seen = []
    make = write._make
    monkeypatch.setattr(write, "_make", lambda *args: (seen.append(args[-1]), make(*args)))
    saved(run, 3)
    assert seen[0] == seen[1] == seen[2] + 4 * (6 + 6)


def test_a_run_links_what_a_stage_does_not_train_and_resumes_from_it(tiny, tmp_path):
    recipe = tiny(
        FROZEN, "output.save_every=1", "output.keep=3", "stages.pretrain.length.steps=4", text=PLAIN
    )
    run = train(recipe, out=tmp_path / "run", stage="pretrain").run
    assert inodes(run, 2) == inodes(run, 4) and not set(inodes(run, 3)) & set(inodes(run, 4))
    learning = [p for p in (run.checkpoints / "step-00000004").glob("shard*") if "frozen" not in p.name]
    base = sum(stat.st_size for stat in frozen_files(run, 4).values())
    assert base > 2 * sum(path.stat().st_size for path in learning)
    aside, path = tmp_path / "step-00000004", run.checkpoints / "step-00000004"
    path.rename(aside)
    train(recipe, out=run.path, stage="pretrain", resume=True)
    again, before = (read.load(each).tensors for each in (path, aside))
    assert list(again) == list(before) and all(torch.equal(again[key], before[key]) for key in again)


@pytest.mark.slow
def test_ranks_link_their_own_rows(tiny, tmp_path):
    recipe = tiny(
        FROZEN, "output.save_every=1", "output.keep=3", "stages.pretrain.length.steps=4", text=PLAIN
    )
    world.run(2, lambda rank: train(recipe, out=tmp_path / "run", stage="pretrain") and None, tmp_path)
    run = RunFolder(tmp_path / "run")
    assert inodes(run, 2) == inodes(run, 4) and not set(inodes(run, 3)) & set(inodes(run, 4))
    assert {name.split("-frozen")[0] for name in frozen_files(run, 4)} == {
        "shard-rank00000",
        "shard-rank00001",
    }
    assert not manifest.verify(run.checkpoints / "step-00000004")
