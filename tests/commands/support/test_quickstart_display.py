"""The quickstart's bars and its one estimate."""

from __future__ import annotations

import io
from pathlib import Path

import pytest
from rich.console import Console

from lmmkit.commands.support.jobs import Job
from lmmkit.commands.support.quickstart_display import PHASES, QuickstartDisplay, overall


class Running(Job):
    """A job that is always half done."""

    running = True  # type: ignore[assignment]

    def last_line(self):
        return "loss 1.0 [x]"


def job(name, share=0.5):
    return Running(name, [], Path(), lambda: share)


def test_phases_add_up():
    assert sum(PHASES.values()) == pytest.approx(1)
    points = [overall(phase, share) for phase in PHASES for share in (0.0, 0.5, 1.0)]
    assert points == sorted(points) and points[0] == 0 and points[-1] == pytest.approx(1)


def test_elsewhere_lines_have_the_jobs_and_one_estimate():
    now = [0.0]
    console = Console(file=io.StringIO(), width=200, markup=False)
    display = QuickstartDisplay(console, ["llava", "direct"], clock=lambda: now[0], phase="training")
    with display.shown():
        for share in (0.0, 0.25, 0.5):
            display([job("llava", 0.9), job("direct", share)])
            now[0] += 60
    lines = console.file.getvalue().splitlines()
    assert len(lines) == 9 and "loss 1.0 [x]" in lines[0] and "llava" in lines[0] and "direct" in lines[1]
    assert lines[-1].strip() == "training; about 2 min left"  # half of the training took 120 s; 51 % are left
    assert sum("left" in line for line in lines) == 3, "one estimate each time"


def test_a_terminal_has_two_bars_and_one_estimate():
    console = Console(file=io.StringIO(), force_terminal=True, width=100, _environ={"TERM": "xterm"})
    display = QuickstartDisplay(console, ["llava", "direct"], phase="training")
    with display.shown():
        display([job("llava", 0.9), job("direct", 0.5)])
        drawn = Console(file=io.StringIO(), width=100)
        drawn.print(display._drawn())
        display([job("llava", 1.0), job("direct", 0.5), job("eval llava", 0.5)])
        later = Console(file=io.StringIO(), width=100)
        later.print(display._drawn())
    assert "evaluation: 50 %" in later.file.getvalue() and "training: 50 %" in later.file.getvalue()
    text = drawn.file.getvalue()
    lines = [line for line in text.splitlines() if line.strip()]
    assert len(lines) == 3 and "training: 90 %" in lines[0] and "training: 50 %" in lines[1]
    assert "estimating the time left" in lines[2]
