"""What a run logs survives kills, and a resumed log reads as if nothing had happened."""

import json
import os
import signal

import numpy as np
import pytest
import torch

from lmmkit.errors import MachineError, UserError
from lmmkit.runs.files import read_jsonl
from lmmkit.training.monitoring.metrics_log import MetricsLog


@pytest.fixture
def path(tmp_path):
    return tmp_path / "metrics.jsonl"


def test_each_step_is_on_disk_at_once_and_nan_is_null(path):
    with MetricsLog(path) as log:
        log.write({"step": 1, "loss": float("nan"), "lr": np.float32(0.5), "stage": "a", "x": None})
        assert read_jsonl(path) == [{"step": 1, "loss": None, "lr": 0.5, "stage": "a", "x": None}]
        with pytest.raises(TypeError):
            log.write({"step": 2, "loss": torch.tensor(1.0)})
        log.write({"step": np.int64(2), "terms/a": float("inf")})
    assert json.loads(path.read_text().splitlines()[1]) == {"step": 2, "terms/a": None}


def test_truncate_keeps_what_the_restored_run_has_seen(path):
    with MetricsLog(path) as log:
        for step in range(1, 8):
            log.write({"step": step, "loss": 1 / step})
        whole = path.read_bytes()
        log.truncate(4)
        assert [r["step"] for r in read_jsonl(path)] == [1, 2, 3, 4]
        for step in range(5, 8):
            log.write({"step": step, "loss": 1 / step})
    assert path.read_bytes() == whole
    assert os.listdir(path.parent) == ["metrics.jsonl"]


def test_truncate_of_nothing(path):
    with MetricsLog(path) as log:
        log.truncate(0)
        log.write({"step": 1})
    assert read_jsonl(path) == [{"step": 1}]


@pytest.mark.parametrize("cut", range(1, 20))
def test_an_incomplete_last_line_is_removed(path, cut):
    lines = b'{"step": 1}\n{"step": 2, "a": 3}\n'
    path.write_bytes(lines[:-cut])
    read_jsonl(path)
    with MetricsLog(path) as log:
        log.write({"step": 3})
    # Without its newline alone, the line is whole.
    assert [r["step"] for r in read_jsonl(path)] == ([1, 2, 3] if cut == 1 else [1, 3])


def test_damage_in_the_middle_is_named(path):
    path.write_text('{"step": 1}\n{"st\n{"step": 3}\n')
    with pytest.raises(UserError, match=r"metrics\.jsonl:2"):
        read_jsonl(path)


def test_a_killed_writer_loses_no_whole_line(path, fork):
    ready, tell = os.pipe()

    def train():
        log = MetricsLog(path)
        for step in range(1, 10**6):
            log.write({"step": step})
            if step == 50:
                os.write(tell, b"x")

    pid = fork(train)
    os.read(ready, 1)
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    steps = [record["step"] for record in read_jsonl(path)]
    assert len(steps) >= 50 and steps == list(range(1, len(steps) + 1))


def test_no_folder_is_the_machines_fault(path):
    with pytest.raises(MachineError, match="log/cannot-write"):
        MetricsLog(path / "deeper" / "metrics.jsonl")
