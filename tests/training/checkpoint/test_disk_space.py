"""Disk space is checked before a run: free bytes, a read-only disk, a quota."""

from __future__ import annotations

import errno
import os

import pytest

from lmmkit.errors import MachineError
from lmmkit.runs.run_folder import RunFolder
from lmmkit.training.checkpoint import disk_space
from lmmkit.training.checkpoint.disk_space import check_space


@pytest.fixture
def run(tmp_path) -> RunFolder:
    (tmp_path / "run").mkdir()
    return RunFolder(tmp_path / "run")


def test_checkpoints_that_exist_need_no_more_space(run, monkeypatch):
    check_space(run, 300)
    monkeypatch.setattr(disk_space, "free", lambda folder: 10)
    with pytest.raises(MachineError, match="checkpoint/cannot-write") as error:
        check_space(run, 300)
    assert "330 bytes needed, 10 free" in error.value.problems[0].got, "a tenth more than the checkpoints"
    for folder, size in (("step-00000001", 200), ("frozen-00000001-0123abcd", 120), (".trash-x", 500)):
        (run.checkpoints / folder).mkdir(parents=True)
        (run.checkpoints / folder / "file").write_bytes(bytes(size))
    check_space(run, 300)
    with pytest.raises(MachineError, match="65 bytes needed"):
        check_space(run, 350)


def test_a_read_only_disk_is_found_before_the_run(run, monkeypatch):
    def read_only(*args, **options):
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    for name in ("write_bytes", "unlink"):
        monkeypatch.setattr(type(run.path), name, read_only)
    with pytest.raises(MachineError, match="Read-only"):
        check_space(run, 300)


def test_a_quota_is_found_before_the_run(run, monkeypatch):
    def over_quota(path):
        raise OSError(errno.EDQUOT, os.strerror(errno.EDQUOT))

    monkeypatch.setattr(disk_space, "fsync", over_quota)
    with pytest.raises(MachineError, match="quota"):
        check_space(run, 300)
    assert not list(run.path.glob(".*.tmp"))
