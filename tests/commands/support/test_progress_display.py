"""Bars on a terminal, lines elsewhere."""

from __future__ import annotations

import io
import re
import time

import pytest
from rich.console import Console

from lmmkit.commands.support.progress_display import REPORT, Bars, Lines, Reported, display_on, reported_share
from lmmkit.progress import counted, shown_on, working


def text_of(console):
    return console.file.getvalue()


def test_a_terminal_gets_bars_others_lines_and_other_ranks_nothing(monkeypatch):
    terminal = Console(file=io.StringIO(), force_terminal=True, _environ={"TERM": "xterm"})
    file = Console(file=io.StringIO())
    assert isinstance(display_on(terminal, quiet=True), Bars) and isinstance(display_on(file), Lines)
    assert display_on(file, quiet=True) is None
    monkeypatch.setenv(REPORT, "somewhere")
    assert isinstance(display_on(file), Reported) and isinstance(display_on(terminal), Bars)
    monkeypatch.setenv("RANK", "1")
    assert display_on(terminal) is None


def test_a_bar_has_the_title_as_it_is_and_disappears():
    console = Console(file=io.StringIO(), force_terminal=True, width=100, _environ={"TERM": "xterm"})
    with shown_on(Bars(console)):
        for _ in counted("reading [red]x[/] and y[/q]", range(5)):
            pass
        with working("second"):
            console.print("in between", markup=False)
    assert "reading [red]x[/] and y[/q]" in text_of(console) and "in between" in text_of(console)
    assert "\x1b[?25h" in text_of(console), "the cursor is shown again"


@pytest.mark.parametrize("width", [60, 80, 120])
def test_a_bar_fits_the_terminal_and_keeps_its_figures(width):
    console = Console(file=io.StringIO(), force_terminal=True, width=width, _environ={"TERM": "xterm"})
    title = "heldout_captions, a source with a long name: answers"
    with shown_on(Bars(console)), working("evaluation", 3):
        for _ in counted(title, range(6), unit="questions"):
            time.sleep(0.11)
    shown = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", text_of(console)).replace("\r", "\n")
    lines = [line for line in shown.split("\n") if "heldout" in line]
    assert max(map(len, shown.split("\n"))) <= width
    assert re.search(r" \d\d %  \d\.\d\d questions/s  \d s left *$", lines[-1]), lines[-1]
    assert (title in lines[-1]) == (width == 120) and ("…" in lines[-1]) == (width < 120)


def test_lines_tell_the_first_title_at_once_and_the_time_left_of_slow_work():
    now = [0.0]
    console = Console(file=io.StringIO(), width=100)
    with shown_on(Lines(console, every=10, clock=lambda: now[0])), working("outer [x]"):
        assert text_of(console) == "outer [x] ...\n"
        for _ in counted("inner", range(4)):
            now[0] += 6
    assert text_of(console).splitlines()[1:] == [
        "inner: 50 %, about 12 s left",
        "inner: 100 %, about 0 s left",
    ]


def test_lines_of_long_work_become_rarer_and_the_first_ones_guess_no_time():
    now = [0.0]
    console = Console(file=io.StringIO(), width=100)
    with shown_on(Lines(console, every=10, clock=lambda: now[0])), working("grid", 3600.0) as move:
        for _ in range(3600):
            now[0] += 1
            move(now[0])
    lines = text_of(console).splitlines()[1:]
    assert lines[0] == "grid: 0 %, the time left is not known yet"
    assert lines[1] == "grid: 1 %, about 59 min 40 s left"
    assert 90 < len(lines) < 105, "of an hour: every 10 s at first, every minute at the end"


def test_the_outermost_task_with_a_total_is_reported_to_a_file(tmp_path):
    path, now = tmp_path / "x.progress", [0.0]
    console = Console(file=io.StringIO(), width=100)
    seen = [reported_share(path)]

    def step():
        now[0] += 0.6
        seen.append(reported_share(path))

    display = Reported(Lines(console), path, clock=lambda: now[0])
    with shown_on(display), working("starting"), working("outer", 4) as move:
        for _ in counted("inner", range(3)):
            step()
        move(1)
        step()
        move(2)  # too early for another write
        step()
        move(3)
        step()
    assert seen == [0, 0, 0, 0, 0.25, 0.25, 0.75] and text_of(console) == "starting ...\n"
    with shown_on(Reported(Lines(console), tmp_path / "no" / "folder", clock=lambda: now[0])):
        for _ in counted("work goes on where the file cannot be written", range(2)):
            pass
