"""Shows the quickstart: a bar for each recipe and one estimate of the time left; lines where is no terminal."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

from rich.console import Console, Group
from rich.live import Live
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn
from rich.text import Text

from lmmkit.commands.support.jobs import Job

PHASES = {"data": 0.05, "training": 0.88, "evaluation": 0.07}  # their shares of the time, on two CPU cores
EVERY = 10.0  # seconds between two lines


@dataclass
class QuickstartDisplay:
    """Shows the jobs of one phase after the other. `names`: the recipes."""

    console: Console
    names: Sequence[str]
    clock: Callable[[], float] = time.monotonic
    phase: str = "data"
    _begin: tuple[float, float] | None = None
    _printed: float = float("-inf")
    _live: Live | None = field(default=None, repr=False)

    def __post_init__(self) -> None:
        self._bars = Progress(
            TextColumn("{task.description:7}", markup=False), BarColumn(bar_width=24), TaskProgressColumn(),
            TextColumn("{task.fields[state]}", markup=False),
        )  # fmt: skip
        self._tasks = {
            name: self._bars.add_task(name, total=1.0, state="waits for the data") for name in self.names
        }
        self._left = "estimating the time"

    @contextmanager
    def shown(self) -> Iterator[None]:
        """Draws the bars on a terminal as long as the block runs."""
        if not self.console.is_terminal or self.console.is_dumb_terminal:
            yield
            return
        with Live(console=self.console, get_renderable=self._drawn, refresh_per_second=4) as self._live:
            yield
        self._live = None

    def __call__(self, jobs: Sequence[Job]) -> None:
        """Shows the state of the jobs of this phase. A recipe may be evaluated before the phase ends."""
        done = {job.name: (1.0 if not job.running else job.share()) for job in jobs}
        at = {
            job.name.split()[-1]: (self._phase_of(job), done[job.name]) for job in jobs
        }  # the latest of a recipe
        self._left = self._time_left(min(overall(*each) for each in at.values()))
        if self._live is not None:
            for name in self.names:
                phase, share = at.get(name) or at.get("data") or (self.phase, 1.0)
                state = f"{phase}: {100 * share:.0f} %"
                self._bars.update(self._tasks[name], completed=overall(phase, share), state=state)
        elif self.clock() - self._printed >= EVERY:
            self._printed = self.clock()
            for job in jobs:
                if job.running:
                    self.console.print(f"  {job.name:12} {100 * done[job.name]:3.0f} %  {job.last_line()}")
            self.console.print(f"  {self.phase}; {self._left}")

    def _phase_of(self, job: Job) -> str:
        return "evaluation" if job.name.startswith("eval ") else self.phase

    def _time_left(self, share: float) -> str:
        now = self.clock()
        if self._begin is None:
            self._begin = now, share
        began, first = self._begin
        if share - first < 0.01:
            return "estimating the time left"
        left = (now - began) * (1 - share) / (share - first)
        return f"about {left / 60:.0f} min left" if left >= 90 else f"about {left:.0f} s left"

    def _drawn(self) -> Group:
        return Group(self._bars, Text(f"{self.phase}; {self._left}"))


def overall(phase: str, done: float) -> float:
    """Returns the share of the whole quickstart that is done, when `done` of a phase is."""
    before = list(PHASES)[: list(PHASES).index(phase)]
    return sum(PHASES[each] for each in before) + PHASES[phase] * done
