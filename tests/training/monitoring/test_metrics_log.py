"""What a run logs survives kills, and a resumed log reads as if nothing had happened."""

import io
import json
import os
import re
import signal
import time

import numpy as np
import pytest
import torch

from lmmkit.errors import MachineError, UserError
from lmmkit.progress import counted, shown_on, working_bytes
from lmmkit.runs.files import read_jsonl
from lmmkit.training.monitoring.metrics_log import Board, MetricsLog, StageProgress


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


def test_board(tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    image = torch.rand(3, 4, 5, dtype=torch.bfloat16)
    with Board(tmp_path, None) as board:
        for step in range(1, 6):
            board.scalars(step, {"loss": step, "gap": None, "bad": float("nan")})
        board.images(1, {"tensor": image, "array": np.full((1, 2, 2), 3.0)})
    time.sleep(1.1)  # event files sort by second, then by a count within the process, as text: 10 before 9
    with Board(tmp_path, purge_step=4) as board:
        board.scalars(4, {"loss": 40})
    events = EventAccumulator(str(tmp_path))
    events.Reload()
    assert events.Tags()["scalars"] == ["loss"]
    assert sorted(events.Tags()["images"]) == ["array", "tensor"]
    assert [(e.step, e.value) for e in events.Scalars("loss")] == [(1, 1), (2, 2), (3, 3), (4, 40)]


class Clock:
    def __init__(self):
        self.now = 0.0

    def __call__(self):
        return self.now


class Terminal(io.StringIO):
    def isatty(self):
        return True


def test_plain_lines_every_ten_seconds_and_at_the_end():
    out, clock = io.StringIO(), Clock()
    with StageProgress("pretrain", 25, done=5, stream=out, clock=clock) as progress:
        for done in range(6, 26):
            clock.now += 2.0
            progress.update(done, tokens=100, loss=0.5 if done < 25 else None)
        progress.notify("saved")
    lines = out.getvalue().splitlines()
    assert lines == [
        "pretrain 10/25  loss 0.5000  0.50 steps/s  50 tokens/s  30 s left",
        "pretrain 15/25  loss 0.5000  0.50 steps/s  50 tokens/s  20 s left",
        "pretrain 20/25  loss 0.5000  0.50 steps/s  50 tokens/s  10 s left",
        "pretrain 25/25  loss none  0.50 steps/s  50 tokens/s  0 s left",
        "saved",
    ]


def test_a_bar_on_a_terminal(monkeypatch):
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "140")
    out, clock = Terminal(), Clock()
    with StageProgress("pretrain", 4, stream=out, clock=clock) as progress:
        for done in range(1, 5):
            clock.now += 1.0
            progress.update(done, tokens=10, loss=2.0)
        progress.notify("a [note] :fire:")
    assert "\x1b[" in out.getvalue() and "4/4" in out.getvalue()
    assert "loss 2.0000  1.00 steps/s" in out.getvalue() and "a [note] :fire:" in out.getvalue()


def test_slow_work_between_steps_shows_the_time_left():
    out, clock = io.StringIO(), Clock()
    progress = StageProgress("pretrain", 4, stream=out, clock=clock)
    with shown_on(progress), working_bytes("writing the checkpoint", 10_000_000) as move:
        for done in range(1, 11):
            clock.now += 3.0
            move(1_000_000 * done)
            list(counted("a part of it", range(3)))
    list(counted("quick", range(3)))
    assert out.getvalue().splitlines() == [
        "pretrain: writing the checkpoint: 40 %, about 18 s left",
        "pretrain: writing the checkpoint: 80 %, about 6 s left",
    ]


@pytest.mark.parametrize("columns", [60, 80, 120])
def test_the_bar_fits_the_terminal_and_keeps_the_time_left(monkeypatch, columns):
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", str(columns))
    out, clock = Terminal(), Clock()
    with StageProgress("finetune", 12_000, stream=out, clock=clock) as progress, shown_on(progress):
        for done in range(1, 4):
            clock.now += 1.5
            progress.update(done, tokens=100_000, loss=10.0)
        with working_bytes("writing the checkpoint", 4_000_000) as move:
            clock.now += 2.0
            move(1_000_000)
    shown = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", out.getvalue()).replace("\r", "\n")
    lines = [line.rstrip() for line in shown.split("\n")]
    assert max(map(len, lines)) <= columns and "…" not in shown
    assert any("2/12000" in line and line.endswith("left") for line in lines)
    assert any(line.endswith("25 %, about 6 s left") for line in lines)
    assert ("writing the checkpoint" in shown) == (columns >= 80) and ("tokens/s" in shown) == (
        columns >= 100
    )
    assert "loss" in [line for line in lines if line][-1], "the figures of the steps are there again"


def test_no_clock_step_is_no_division_by_zero():
    out = io.StringIO()
    progress = StageProgress("s", 1, stream=out, clock=lambda: 0.0)
    progress.update(1, tokens=0, loss=1.0)
    assert out.getvalue().startswith("s 1/1")
