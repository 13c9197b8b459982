"""A queue of commands: order, failures that end no other, and a stop."""

from __future__ import annotations

import itertools
import os
import re
import signal
import threading
import time
from dataclasses import dataclass, field

import pytest

from lmmkit.commands.experiments.job_queue import Took, run_queue
from lmmkit.commands.support.jobs import Job

GOOD, BAD = ["explain", "plan/no-view"], ["explain", "no/such-code"]


@dataclass
class Fake:
    """A command, or a state without one."""

    name: str
    folder: object
    words: list[str] = field(default_factory=lambda: GOOD)
    after: tuple[str, ...] = ()
    states: list[str] = field(default_factory=list)
    ended: list[Job] = field(default_factory=list)
    took: Took = field(default_factory=lambda: Took(cpu_seconds=7.4, wall_seconds=75.0))
    began: float = 0.0

    def begin(self):
        if self.states:
            return self.states.pop(0)
        self.began = time.monotonic()
        job = Job(self.name, self.words, self.folder)
        job.start()
        return job

    def end(self, job):
        self.ended.append(job)


def test_work_waits_for_what_it_needs_and_a_failure_ends_only_what_needs_it(tmp_path, capsys):
    first, second = (
        Fake("first", tmp_path),
        Fake("second", tmp_path, after=("first", "done", "not in the queue")),
    )
    bad, never = Fake("bad", tmp_path, BAD), Fake("never", tmp_path, after=("bad",))
    further = Fake("further", tmp_path, after=("never",))
    done, busy = (
        Fake("done", tmp_path, states=["done"]),
        Fake("busy", tmp_path, states=["busy", "busy", "done"]),
    )
    shown, ends = [], []

    def show(jobs, ended):
        shown.append(len(jobs))
        ends.append(set(ended))

    queue = [second, never, further, first, bad, done, busy]
    failed = run_queue(queue, 2, show, label=lambda name: f"the {name} one")
    assert set(failed) == {"bad", "never", "further"}
    assert failed["bad"].reason.endswith("bad.log") and failed["bad"].code == failed["further"].code == 2
    assert failed["never"].reason == "needs bad" and never.ended == []
    assert second.began > first.began and not second.ended[0].failed
    assert max(shown) <= 2
    assert first.ended[0].process.usage.ru_utime > 0, "what the command used"
    text = capsys.readouterr().err
    assert text.count("the busy one: waits for another process") == 1
    assert f"failed: the bad one: {tmp_path / 'bad.log'}" in text
    assert "started: the first one" in text and "started: the done one" not in text
    assert re.search(r"^done: the first one: 1 min 15 s, 7 CPU s; [1-4] of 7$", text, re.MULTILINE)
    assert "first" in ends[-1] and all(a <= b for a, b in itertools.pairwise(ends))


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_stops_all_and_starts_no_more(tmp_path, signum):
    scenes = ["data", "make-scenes", str(tmp_path / "scenes"), "--count", "100000"]
    slow, waiting = Fake("slow", tmp_path, scenes), Fake("waiting", tmp_path, after=("slow",))
    threading.Timer(0.3, lambda: os.kill(os.getpid(), signum)).start()
    with pytest.raises(KeyboardInterrupt) as error:
        run_queue([slow, waiting], 1, lambda jobs, ended: None)
    assert error.value.args == (signum,)
    assert slow.ended[0].process.returncode not in (None, 0) and not waiting.began
    assert slow.ended[0].process.usage is not None
