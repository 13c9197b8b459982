"""The progress of a stage: plain lines, or a bar that fits the terminal."""

import io
import re

import pytest

from lmmkit.progress import counted, shown_on, working_bytes
from lmmkit.training.monitoring.stage_progress import StageProgress


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
