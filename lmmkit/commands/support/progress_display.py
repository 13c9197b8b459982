"""Shows tasks on the terminal as bars with the time left; elsewhere, such as in a file, as plain lines."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, Progress, ProgressColumn, SpinnerColumn, Task, TaskID
from rich.table import Column
from rich.text import Text

from lmmkit.progress import Display, duration

EVERY, MOST = 10.0, 60.0  # seconds between two lines of a task: at first, and after twenty minutes
LEAST = 0.5  # percent done, from which on the time left is a guess worth printing
BAR_WIDTHS = ((100, 24), (70, 12), (0, 6))  # (least columns of the terminal, columns of a bar)
REPORT = "LMMKIT_PROGRESS"  # the environment variable that names the file of `Reported`
REPORTED = 1.0  # seconds between two writes of it
DRAWN = 0.1  # seconds between two updates of a bar: drawing costs more than much of the work


def display_on(console: Console, *, quiet: bool = False) -> Display | None:
    """Returns the display for a console. `quiet`: nothing unless it is a terminal. Of several ranks, the first
    one shows its work. A command that another one has started also reports to it, by a file."""
    if os.environ.get("RANK", "0") != "0":
        return None
    if console.is_terminal and not console.is_dumb_terminal:
        return Bars(console)
    if quiet:
        return None
    path = os.environ.get(REPORT)
    return Reported(Lines(console), Path(path)) if path else Lines(console)


class _Title(ProgressColumn):
    """Shows the title; where the line is too long, its end is left out, and the figures stay."""

    def __init__(self) -> None:
        super().__init__(Column(no_wrap=False))

    def render(self, task: Task) -> Text:
        return Text(task.description, no_wrap=True, overflow="ellipsis")


class _State(ProgressColumn):
    """Shows the share that is done, the rate and the time left; without a total, the time so far."""

    def __init__(self) -> None:
        super().__init__(Column(no_wrap=True))

    def render(self, task: Task) -> Text:
        if task.total is None:
            return Text(duration(task.elapsed or 0))
        parts = [f"{task.percentage:3.0f} %"]
        if task.fields["unit"] and task.speed:
            parts.append(_rate(task.speed, task.fields["unit"]))
        if (left := task.time_remaining) is not None and task.speed:
            parts.append(f"{duration(left)} left")
        return Text("  ".join(parts))


def _rate(speed: float, unit: str) -> str:
    """Returns a rate with two or more digits: "0.52 images/s", "12.5 images/s", "1,204 images/s"."""
    return f"{speed:,.{0 if speed >= 100 else 1 if speed >= 10 else 2}f} {unit}/s"


class Bars:
    """Draws one bar for each task, as long as the task lasts."""

    def __init__(self, console: Console):
        self._console = console
        self._progress: Progress | None = None
        self._drawn: dict[int, float] = {}

    def begin(self, title: str, total: float | None, unit: str) -> int:
        """Adds a bar; one without a total only shows that the work goes on."""
        if self._progress is None:
            bar = BarColumn(bar_width=next(bar for least, bar in BAR_WIDTHS if self._console.width >= least))
            self._progress = Progress(
                SpinnerColumn(), _Title(), bar, _State(), console=self._console, transient=True
            )
            self._progress.start()
        task = self._progress.add_task(title, total=total, unit=unit)
        self._drawn[task] = 0.0
        return task

    def move(self, task: int, done: float) -> None:
        """Moves the bar."""
        now = time.monotonic()
        if self._progress is not None and now - self._drawn[task] >= DRAWN:
            self._drawn[task] = now
            self._progress.update(TaskID(task), completed=done)

    def end(self, task: int) -> None:
        """Removes the bar. Without a bar the terminal is free for other output."""
        del self._drawn[task]
        if self._progress is not None:
            self._progress.remove_task(TaskID(task))
            if not self._drawn:
                self._progress.stop()
                self._progress = None


@dataclass
class _Line:
    """Describes a task that is shown as plain lines: when it began, and when its last line was printed."""

    title: str
    total: float | None
    unit: str
    began: float
    printed: float


@dataclass
class Lines:
    """Prints a line when work begins that is not part of other work, and of slow work a line every `every` seconds,
    later every minute."""

    console: Console
    every: float = EVERY
    clock: Callable[[], float] = time.monotonic
    _tasks: dict[int, _Line] = field(default_factory=dict)
    _count: int = 0

    def begin(self, title: str, total: float | None, unit: str) -> int:
        """Prints the title of a task, unless it is a part of another one."""
        if not self._tasks:
            self._print(f"{title} ...")
        self._count += 1
        now = self.clock()
        self._tasks[self._count] = _Line(title, total, unit, now, now)
        return self._count

    def move(self, task: int, done: float) -> None:
        """Prints the share that is done and the time left, from time to time."""
        line, now = self._tasks[task], self.clock()
        seconds = now - line.began
        if line.total and done and now - line.printed >= max(self.every, min(MOST, seconds / 20)):
            line.printed = now
            left = seconds * max(0.0, line.total - done) / done
            rate = f"{_rate(done / seconds, line.unit)}, " if line.unit else ""
            share = 100 * done / line.total
            until = f"about {duration(left)} left" if share >= LEAST else "the time left is not known yet"
            self._print(f"{line.title}: {share:.0f} %, {rate}{until}")

    def end(self, task: int) -> None:
        """Forgets the task."""
        del self._tasks[task]

    def _print(self, text: str) -> None:
        self.console.print(text, markup=False)


@dataclass
class Reported:
    """Shows tasks on another display, and writes to a file the share that is done of the outermost task with a
    total. `reported_share` reads it."""

    shown: Display
    path: Path
    clock: Callable[[], float] = time.monotonic
    _outermost: tuple[int, float] | None = None  # the task and its total
    _written: float = float("-inf")

    def begin(self, title: str, total: float | None, unit: str) -> int:
        """Begins a task on the other display."""
        task = self.shown.begin(title, total, unit)
        if self._outermost is None and total:
            self._outermost = task, total
        return task

    def move(self, task: int, done: float) -> None:
        """Writes the share of the outermost task, at most once a second."""
        self.shown.move(task, done)
        if self._outermost is None or self._outermost[0] != task or self.clock() - self._written < REPORTED:
            return
        self._written, aside = self.clock(), self.path.with_suffix(".tmp")
        with suppress(OSError):  # the work itself does not need it
            aside.write_text(f"{done / self._outermost[1]:.4f}", encoding="ascii")
            aside.replace(self.path)

    def end(self, task: int) -> None:
        """Ends the task on the other display."""
        self.shown.end(task)
        if self._outermost is not None and self._outermost[0] == task:
            self._outermost = None


def reported_share(path: Path) -> float:
    """Returns the share that another command has written to this file; 0 before the first."""
    try:
        return float(path.read_text(encoding="ascii"))
    except OSError:
        return 0.0
