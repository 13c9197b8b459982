"""The progress of a stage on the terminal: a bar, or plain lines where there is none."""

from __future__ import annotations

import sys
import time
from collections import deque
from collections.abc import Callable
from typing import NamedTuple, TextIO

from lmmkit.progress import duration


class StageProgress:
    """Prints the progress of a stage: step, loss, rates and time left.

    On a terminal it redraws a bar in place. Elsewhere (a file, a scheduler's log) it prints a plain
    line every `EVERY` seconds and on the last step. It is also the display of work between the steps, such as saving
    and validating, which is shown with its time left if it is slow.
    """

    WINDOW = 50  # steps over which the rates are measured
    EVERY = 10.0  # seconds between two plain lines
    SLOW = 1.0  # seconds after which work between the steps gets a bar

    def __init__(
        self,
        stage: str,
        steps: int,
        *,
        done: int = 0,
        stream: TextIO | None = None,
        clock: Callable[[], float] = time.monotonic,
    ):
        """Starts the display. `steps`: all of the stage; `done`: those that an earlier process completed."""
        self.stage, self.steps, self.done = stage, steps, done
        self._stream = sys.stderr if stream is None else stream
        self._clock = clock
        self._tokens = 0
        self._points = deque([(clock(), done, 0)], maxlen=self.WINDOW)
        self._shown = clock()
        self._bar = _Bar(stage, steps, done, self._stream) if self._stream.isatty() else None
        self._works = 0
        self._work: _Work | None = None

    def update(self, done: int, *, tokens: int, loss: float | None) -> None:
        """Shows a completed step. `done`: steps of the stage so far; `tokens`, `loss`: of this step."""
        now = self._clock()
        self.done = done
        self._tokens += tokens
        self._points.append((now, done, self._tokens))
        last = done >= self.steps
        wait = _Bar.EVERY if self._bar is not None else self.EVERY
        if not last and now - self._shown < wait:
            return
        self._shown = now
        if self._bar is not None:
            self._bar.show(done, self._figures(loss, self._bar.width))
        else:
            self._print(f"{self.stage} {done}/{self.steps}  {self._figures(loss)}")

    def begin(self, title: str, total: float | None, unit: str) -> int:
        """Begins work. Of work inside other work only the outer one is shown."""
        self._works += 1
        if total and self._work is None:
            self._work = _Work(self._works, title, total, self._clock())
        return self._works

    def move(self, task: int, done: float) -> None:
        """Shows how far slow work is."""
        work, now = self._work, self._clock()
        if work is None or work.task != task or not done or now - work.began < self.SLOW:
            return
        left = (now - work.began) * max(0.0, work.total - done) / done
        share, figures = done / work.total, f"about {duration(left)} left"
        if self._bar is not None:
            if now - self._shown >= _Bar.EVERY:
                self._shown = now
                self._bar.show_work(work.title, f"{100 * share:.0f} %, {figures}")
        elif now - max(self._shown, work.began) >= self.EVERY:
            self._shown = now
            self._print(f"{self.stage}: {work.title}: {100 * share:.0f} %, {figures}")

    def end(self, task: int) -> None:
        """Ends work; the figures of the steps are shown again."""
        if self._work is not None and self._work.task == task:
            self._work = None
            if self._bar is not None:
                self._bar.end_work()

    def notify(self, text: str) -> None:
        """Prints a separate line, above the bar if there is one."""
        if self._bar is not None:
            self._bar.notify(text)
        else:
            self._print(text)

    def close(self) -> None:
        """Stops updating the bar; its last state remains visible."""
        if self._bar is not None:
            self._bar.close()

    def __enter__(self) -> StageProgress:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def _figures(self, loss: float | None, width: int = 100) -> str:
        """Returns loss, rates and time left; on a narrow terminal without one or both of the rates."""
        (t0, done0, tokens0), (t1, done1, tokens1) = self._points[0], self._points[-1]
        seconds = max(t1 - t0, 1e-9)
        rate = (done1 - done0) / seconds
        left = duration((self.steps - done1) / rate) if rate > 0 else "unknown"
        shown = "none" if loss is None else f"{loss:.4f}"
        tokens = (tokens1 - tokens0) / seconds
        rates = [f"{rate:.2f} steps/s"] * (width >= 70) + [f"{tokens:,.0f} tokens/s"] * (width >= 100)
        return "  ".join([f"loss {shown}", *rates, f"{left} left"])

    def _print(self, text: str) -> None:
        print(text, file=self._stream, flush=True)


class _Work(NamedTuple):
    """Describes the work between two steps that is shown."""

    task: int
    title: str
    total: float
    began: float


class _Bar:
    """Draws the bar on a terminal. Uses no thread, because threads and forked data workers conflict."""

    EVERY = 0.2  # seconds between two redraws

    def __init__(self, stage: str, steps: int, done: int, stream: TextIO):
        from rich import progress
        from rich.console import Console

        console = Console(file=stream, emoji=False)
        self.width, self._steps = console.width, steps
        self._bar_width = 24 if self.width >= 100 else 12 if self.width >= 70 else 6
        self._rich = progress.Progress(
            progress.TextColumn("{task.description}", markup=False),
            progress.BarColumn(bar_width=self._bar_width),
            progress.TextColumn("{task.fields[count]}", markup=False),
            progress.TextColumn("{task.fields[figures]}", markup=False),
            console=console,
            auto_refresh=False,
        )
        self._figures, self._done, self._stage = "", done, stage
        self._task = self._rich.add_task(stage, total=steps, count="", figures="")
        self._draw("")
        self._rich.start()

    def show(self, done: int, figures: str) -> None:
        self._done, self._figures = done, figures
        self._draw(figures)

    def show_work(self, title: str, figures: str) -> None:
        """Shows the figures of work in place of those of the steps, with the title if there is room."""
        room = self.width - len(f"{self._stage} {'':{self._bar_width}} {self._count} {figures}")
        self._draw(f"{title} {figures}" if len(title) < room - 1 else figures)

    def end_work(self) -> None:
        self._draw(self._figures)

    @property
    def _count(self) -> str:
        return f"{self._done:{len(str(self._steps))}}/{self._steps}"

    def _draw(self, figures: str) -> None:
        self._rich.update(self._task, completed=self._done, count=self._count, figures=figures, refresh=True)

    def notify(self, text: str) -> None:
        self._rich.console.print(text, markup=False, highlight=False)

    def close(self) -> None:
        self._rich.stop()
