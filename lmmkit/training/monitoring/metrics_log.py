"""Logs of a step's figures: metrics.jsonl, TensorBoard, and the progress line on the terminal."""

from __future__ import annotations

import json
import math
import os
import re
import sys
import textwrap
import time
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple, TextIO

import numpy as np
from torch import Tensor

from lmmkit.errors import MachineError, Problem, UserError
from lmmkit.errors.training import LOG_CANNOT_WRITE, NO_STEP
from lmmkit.progress import duration
from lmmkit.runs.files import io_point, plain, read_jsonl, write_text_atomic

_Image = Tensor | np.ndarray  # [C, X, Y], values 0 to 1


class MetricsLog:
    """Appends one JSON object for each step; `write` flushes it to the operating system.

    Opening the file removes an incomplete last line, so that the next line is not appended to it. Raises
    `UserError` if another line is damaged, `MachineError` if the file cannot be written.
    """

    def __init__(self, path: Path):
        self.path = path
        if path.is_file() and not _ends_in_newline(path):
            self._rewrite(read_jsonl(path))
        self._file = self._open()

    def write(self, record: Mapping[str, Any]) -> None:
        """Appends `record`; NaN and infinities become null."""
        try:
            io_point(f"append to {self.path.name}")
            self._file.write(_line(record))
            self._file.flush()
        except OSError as error:
            raise MachineError(_unwritable(self.path, error)) from error

    def truncate(self, step: int) -> None:
        """Removes the records after `step`, because those steps will run again."""
        self._file.close()
        self._rewrite([record for record in self._read() if record["step"] <= step])
        self._file = self._open()

    def close(self) -> None:
        """Closes the file; every record is already written."""
        self._file.close()

    def __enter__(self) -> MetricsLog:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def _read(self) -> list[dict[str, Any]]:
        records = read_jsonl(self.path)
        for number, record in enumerate(records, 1):
            if type(record.get("step")) is not int:
                raise UserError(NO_STEP.at(f"{self.path}:{number}", got="a line without its step"))
        return records

    def _rewrite(self, records: list[dict[str, Any]]) -> None:
        write_text_atomic(self.path, "".join(map(_line, records)))

    def _open(self) -> TextIO:
        try:
            return self.path.open("a", encoding="utf-8")
        except OSError as error:
            raise MachineError(_unwritable(self.path, error)) from error


class Board:
    """Writes scalars, images and texts for TensorBoard.

    With `purge_step` (on resume: the restored step + 1), TensorBoard hides what an earlier process logged
    from that step on. `terms`: each gets charts in the tab "Custom Scalars" in which its curve, and each of its
    metrics, is next to its chance level. Importing tensorboard is slow, so it is imported when a board is created.
    """

    def __init__(self, tb_dir: Path, purge_step: int | None, terms: Iterable[str] = ()):
        from torch.utils.tensorboard import SummaryWriter

        self._writer = SummaryWriter(str(tb_dir), purge_step=purge_step, flush_secs=30)
        charts = {term: re.escape(term) for term in terms}  # a tag of a chart is a regular expression
        if charts:
            self._writer.add_custom_scalars({
                "terms and chance": {t: ["Multiline", [f"^(terms|chance)/{e}$"]] for t, e in charts.items()},
                "metrics and chance": {t: ["Multiline", [f"^(terms|chance)/{e}/"]] for t, e in charts.items()},
            })  # fmt: skip

    def scalars(self, step: int, values: Mapping[str, float | None]) -> None:
        """Writes one point for each value; omits None (a term without items), NaN and infinities."""
        for name, value in values.items():
            if value is not None and math.isfinite(value):
                self._writer.add_scalar(name, value, step)

    def images(self, step: int, images: Mapping[str, _Image]) -> None:
        """Writes one image for each name: [C, X, Y], values clipped to 0..1."""
        for name, image in images.items():
            if isinstance(image, Tensor):
                image = image.detach().float().cpu().numpy()
            clipped = np.clip(np.asarray(image, dtype=np.float32), 0.0, 1.0)
            self._writer.add_image(name, clipped, step)

    def texts(self, step: int, texts: Mapping[str, str]) -> None:
        """Writes one text for each name, character by character as it is: TensorBoard would read Markdown in it."""
        for name, text in texts.items():
            self._writer.add_text(name, textwrap.indent(text, "    "), step)

    def close(self) -> None:
        """Writes buffered points and closes the writer."""
        self._writer.close()

    def __enter__(self) -> Board:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()


class NullLogger:
    """Replaces metrics, board and progress on a rank that logs nothing."""

    def __enter__(self) -> NullLogger:
        return self

    def __exit__(self, *error: object) -> None:
        pass

    def write(self, record: Mapping[str, Any]) -> None:
        """Writes nothing, like all methods of this class."""

    def truncate(self, step: int) -> None: ...

    def scalars(self, step: int, values: Mapping[str, float | None]) -> None: ...

    def images(self, step: int, images: Mapping[str, _Image]) -> None: ...

    def texts(self, step: int, texts: Mapping[str, str]) -> None: ...

    def update(self, done: int, *, tokens: int, loss: float | None) -> None: ...

    def notify(self, text: str) -> None: ...


class StageProgress:
    """Prints the progress of a stage: step, loss, rates and time left.

    On a terminal it redraws a bar in place. Elsewhere (a file, a scheduler's log) it prints a plain line
    every `every` seconds and on the last step. It is also the display of work between the steps, such as saving
    and validating, which is shown with its time left if it is slow.
    """

    WINDOW = 50  # steps over which the rates are measured
    SLOW = 1.0  # seconds after which work between the steps gets a bar

    def __init__(
        self,
        stage: str,
        steps: int,
        *,
        done: int = 0,
        stream: TextIO | None = None,
        every: float = 10.0,
        clock: Callable[[], float] = time.monotonic,
    ):
        """Starts the display. `steps`: all of the stage; `done`: those that an earlier process completed."""
        self.stage, self.steps, self.done = stage, steps, done
        self._stream = sys.stderr if stream is None else stream
        self._every, self._clock = every, clock
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
        wait = _Bar.EVERY if self._bar is not None else self._every
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
        elif now - max(self._shown, work.began) >= self._every:
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


def _line(record: Mapping[str, Any]) -> str:
    return json.dumps(plain(record), allow_nan=False) + "\n"


def _ends_in_newline(path: Path) -> bool:
    """Returns whether a file is empty or ends in a newline."""
    with path.open("rb") as file:
        if file.seek(0, os.SEEK_END) == 0:
            return True
        file.seek(-1, os.SEEK_END)
        return file.read(1) == b"\n"


def _unwritable(path: Path, error: OSError) -> Problem:
    return LOG_CANNOT_WRITE.at(str(path), got=error.strerror or str(error))
