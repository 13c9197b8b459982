"""Frozen weights are written once a stage, in two copies; one damaged copy costs nothing, two cost the stage's checkpoints."""

from __future__ import annotations

import errno
import logging
import os
import shutil

import pytest
import torch

from lmmkit.errors import MachineError, UserError
from lmmkit.runs.files import file_crc32
from lmmkit.runs.run_folder import RunFolder
from lmmkit.training.checkpoint import manifest, read, write
from lmmkit.training.checkpoint.saver import Saver
from lmmkit.training.distributed.process_group import ALONE
from lmmkit.training.run import train
from tests.conftest import PLAIN
from tests.support import local_ranks

FROZEN = "stages.pretrain.train={connector: {}, plugins: {}}"
SHORT = ("output.save_every=1", "output.keep=3", "stages.pretrain.length.steps=4")


def folders(run: RunFolder) -> list[str]:
    return sorted(path.name for path in run.checkpoints.glob("frozen-*"))


def listed(run: RunFolder, step: int) -> str | None:
    return manifest.examine(at(run, step), contents=False).frozen


def at(run: RunFolder, step: int):
    return run.checkpoints / f"step-{step:08d}"


def flip(path) -> None:
    """Damages a file, so that only its contents show it."""
    with path.open("r+b") as file:
        file.seek(-1, os.SEEK_END)
        last = file.read(1)[0]
        file.seek(-1, os.SEEK_END)
        file.write(bytes([last ^ 1]))


@pytest.fixture
def run(tmp_path):
    run = RunFolder(tmp_path / "run")
    run.path.mkdir()
    return run


def stage(
    run: RunFolder,
    steps,
    *,
    keep: int = 4,
    in_thread: bool = False,
    base=None,
    listing=None,
    spoil=lambda step: None,
):
    """Saves checkpoints of one trainable and two frozen tensors, as one stage does; returns the frozen ones."""
    base = torch.arange(6.0) if base is None else base
    frozen = {"base": base, "other": torch.ones(2, 3)}
    with Saver(run, keep=keep, ranks=ALONE, in_thread=in_thread, frozen=frozen, before=listing) as saver:
        for step in steps:
            spoil(step)
            saver.save(step, frozen | {"trained": torch.full((3,), float(step))}, {})
            saver.wait()
    return frozen


def assert_holds(run: RunFolder, step: int, frozen) -> None:
    tensors = read.load(at(run, step)).tensors
    assert all(torch.equal(tensors[name], tensor) for name, tensor in frozen.items())
    assert torch.equal(tensors["trained"], torch.full((3,), float(step)))


@pytest.mark.parametrize("in_thread", [False, True])
def test_a_stage_writes_two_copies_and_every_manifest_lists_them(run, in_thread):
    frozen = stage(run, [1, 2, 3], in_thread=in_thread)
    (name,) = folders(run)
    files = {
        path.name: (path.stat().st_size, file_crc32(path)) for path in (run.checkpoints / name).iterdir()
    }
    assert sorted(files) == ["a-frozen-00000.safetensors", "b-frozen-00000.safetensors"]
    assert len(set(files.values())) == 1
    for step in (1, 2, 3):
        assert listed(run, step) == name and manifest.verify(at(run, step)) == ()
        assert_holds(run, step, frozen)
        assert sum(path.stat().st_size for path in at(run, step).glob("shard-*")) < 200, (
            "the trained tensor alone"
        )


@pytest.mark.parametrize("copy", ["a", "b"])
@pytest.mark.parametrize("harm", [flip, lambda path: os.truncate(path, 9), lambda path: path.unlink()])
def test_one_damaged_copy_is_reported_and_the_other_is_read(run, caplog, copy, harm):
    frozen = stage(run, [1, 2])
    file = run.checkpoints / folders(run)[0] / f"{copy}-frozen-00000.safetensors"
    harm(file)
    path, notices, spoiled = read.newest(run)
    assert path == at(run, 2) and notices == ()
    assert_holds(run, 2, frozen)
    seen = (copy, harm) != ("b", flip)  # a second copy is read only where the first is damaged
    assert spoiled == ({f"{file.parent.name}/{file.name}"} if seen else set())
    assert (str(file) in caplog.text) is seen and ("the other copy is used" in caplog.text) is seen
    assert (read.load(path, spoiled=spoiled).frozen is None) is seen, "the next save writes both again"
    verdicts = read.verdicts(run, every=True)
    assert all(v.sound and list(v.spoiled) == [f"{file.parent.name}/{file.name}"] for v in verdicts)


def test_with_both_copies_damaged_the_stage_before_is_resumed(run):
    before = stage(run, [1, 2])
    stage(run, [3, 4], base=torch.zeros(6))
    assert len(folders(run)) == 2
    for copy in (run.checkpoints / listed(run, 4)).iterdir():
        flip(copy)
    with pytest.raises(UserError, match="checkpoint/damaged"):
        read.load(at(run, 4))
    path, notices, spoiled = read.newest(run)
    assert path == at(run, 2) and len(notices) == 4 and not spoiled
    assert all("-frozen-00000.safetensors" in notice.where for notice in notices)
    assert_holds(run, 2, before)


def test_pruning_removes_a_folder_with_the_last_checkpoint_that_lists_it(run):
    stage(run, [1, 2], keep=2)
    (first,) = folders(run)
    stage(run, [3], keep=2)
    assert len(folders(run)) == 2
    stage(run, [4], keep=2, listing=read.load(at(run, 3)).frozen)
    assert folders(run) == [listed(run, 4)] != [first]


def test_a_stage_that_resumes_uses_the_files_that_are_there(run):
    stage(run, [1])
    (name,) = folders(run)
    listing = read.load(at(run, 1)).frozen
    frozen = stage(run, [2, 3], listing=listing)
    assert folders(run) == [name] and listed(run, 3) == name
    assert_holds(run, 3, frozen)
    stage(run, [4], listing=listing | {"tensors": ["other"]})
    assert listed(run, 4) != name, "files of other tensors"


@pytest.mark.parametrize("fault", ["changed", "cut short", "gone"])
def test_weights_or_files_that_changed_are_written_again(run, fault):
    base = torch.arange(6.0)

    def spoil(step):
        if step == 3:
            file = run.checkpoints / listed(run, 2) / "b-frozen-00000.safetensors"
            {"changed": lambda: base.add_(1), "cut short": lambda: os.truncate(file, 9), "gone": file.unlink}[
                fault
            ]()

    frozen = stage(run, [1, 2, 3, 4], base=base, spoil=spoil)
    assert listed(run, 1) == listed(run, 2) != listed(run, 3) == listed(run, 4)
    assert_holds(run, 4, frozen)
    assert not manifest.examine(at(run, 4), every_copy=True).spoiled


@pytest.mark.parametrize(
    "fails", ["make the folder of", "write a-", "sync b-", "sync the folder of", "write state", "publish"]
)
def test_a_full_disk_leaves_no_half_written_folder(run, monkeypatch, fails):
    stage(run, [1])
    (name,) = folders(run)

    def point(name):
        if name.startswith(fails):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(write, "io_point", point)
    with pytest.raises(MachineError, match="checkpoint/cannot-write"):
        stage(run, [2])
    assert sorted(path.name for path in run.checkpoints.iterdir()) == [name, "step-00000001"]
    monkeypatch.undo()
    assert_holds(run, 2, stage(run, [2]))


def test_the_next_start_removes_what_a_killed_save_left(run):
    stage(run, [1])
    (name,) = folders(run)
    shutil.copytree(run.checkpoints / name, run.checkpoints / "frozen-00000009-0123abcd")
    assert write.sweep(run) == ("removed frozen-00000009-0123abcd, which no checkpoint lists",)
    assert folders(run) == [name]
    (at(run, 1) / manifest.FILE_NAME).write_text("{}")
    assert write.sweep(run) == () and folders(run) == [name], "a manifest that is damaged may be restored"


def test_a_save_that_lacks_only_its_name_is_finished_with_its_frozen_weights(run):
    frozen = stage(run, [1])
    at(run, 1).rename(run.checkpoints / ".tmp-00000001-0123abcd")
    assert write.sweep(run) == ("finished step-00000001, which was all but saved",)
    assert_holds(run, 1, frozen)


def test_room_is_asked_for_two_copies_once_a_stage(run, monkeypatch):
    asked = []
    make = write._make_folders
    monkeypatch.setattr(write, "_make_folders", lambda *args: (asked.append(args[-1]), make(*args)))
    stage(run, [1, 2, 3])
    assert asked[0] - 2 * 4 * (6 + 6) == asked[1] == asked[2]


@pytest.mark.parametrize(
    "forged",
    [{"folder": "../../outside"}, {"files": {"../x": [1, 1]}}, {"folder": None}, {"parts": {"base": []}}],
)
def test_a_forged_manifest_leads_nowhere(run, forged):
    stage(run, [1])
    body = manifest.read(at(run, 1))
    body["frozen"] |= forged
    body["crc32"] = manifest.zlib.crc32(manifest._encode(body))
    (at(run, 1) / manifest.FILE_NAME).write_bytes(manifest._encode(body))
    with pytest.raises(UserError, match="does not write"):
        read.load(at(run, 1))


def test_a_link_in_place_of_the_folder_or_a_file_is_not_followed(run, tmp_path):
    stage(run, [1])
    home = run.checkpoints / folders(run)[0]
    home.rename(tmp_path / "elsewhere")
    home.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(UserError, match="got a link"):
        read.load(at(run, 1))


def test_a_run_shares_what_a_stage_does_not_train_and_resumes_from_it(tiny, tmp_path, caplog):
    recipe = tiny(FROZEN, *SHORT, text=PLAIN)
    run = train(recipe, out=tmp_path / "run", stage="pretrain").run
    (name,) = folders(run)
    assert {listed(run, step) for step in (2, 3, 4)} == {name}
    frozen = sum(path.stat().st_size for path in (run.checkpoints / name).glob("a-*"))
    assert frozen > 2 * sum(path.stat().st_size for path in at(run, 4).glob("shard*"))
    aside = tmp_path / "step-00000004"
    shutil.copytree(run.checkpoints / name, tmp_path / name)
    at(run, 4).rename(aside)
    train(recipe, out=run.path, stage="pretrain", resume=True)
    assert folders(run) == [name] and listed(run, 4) == name
    again, before = (read.load(path).tensors for path in (at(run, 4), aside))
    assert list(again) == list(before) and all(torch.equal(again[key], before[key]) for key in again)
    shutil.rmtree(at(run, 4))
    flip(run.checkpoints / name / "a-frozen-00000.safetensors")
    with caplog.at_level(logging.WARNING):
        train(recipe, out=run.path, stage="pretrain", resume=True)
    assert "a-frozen-00000.safetensors" in caplog.text and listed(run, 4) != name == listed(run, 3)
    again = read.load(at(run, 4)).tensors
    assert all(torch.equal(again[key], before[key]) for key in again)


def test_a_run_that_lost_a_stage_resumes_from_the_stage_before(tiny, tmp_path):
    short = [f"stages.{name}.length.steps=2" for name in ("pretrain", "finetune")]
    recipe = tiny(FROZEN, "output.save_every=1", "output.keep=4", *short, text=PLAIN)
    whole = train(recipe, out=tmp_path / "run").run
    stages = {step: listed(whole, step) for step in (1, 2, 3, 4)}
    assert stages[1] == stages[2] != stages[3] == stages[4]
    model = (whole.model("finetune") / "model.safetensors").read_bytes()
    for copy in (whole.checkpoints / stages[3]).iterdir():
        flip(copy)
    train(recipe, out=whole.path, resume=True)
    assert (whole.model("finetune") / "model.safetensors").read_bytes() == model
    assert listed(whole, 4) not in (stages[2], stages[3]) and read.newest(whole).notices == ()


@pytest.mark.slow
def test_ranks_write_their_own_rows_and_another_number_resumes(tiny, tmp_path):
    recipe = tiny(FROZEN, *SHORT, text=PLAIN)
    out = tmp_path / "run"
    local_ranks.run(2, lambda rank: train(recipe, out=out, stage="pretrain") and None, tmp_path / "two")
    run = RunFolder(out)
    (name,) = folders(run)
    files = {path.name for path in (run.checkpoints / name).iterdir()}
    assert files == {f"{copy}-frozen-rank{rank:05d}-00000.safetensors" for copy in "ab" for rank in (0, 1)}
    before = read.load(at(run, 4)).tensors
    again = {key: before[key] for key in before if key.startswith("model.")}
    for number in (2, 3, 1):
        shutil.rmtree(at(run, 4))
        local_ranks.run(
            number,
            lambda rank: train(recipe, out=out, stage="pretrain", resume=True) and None,
            tmp_path / f"on-{number}",
        )
        assert folders(run) == [name] and listed(run, 4) == name
        tensors = read.load(at(run, 4)).tensors
        assert all(torch.allclose(tensors[key], again[key], atol=1e-5) for key in again)
