"""Commands side by side: their logs, a failed one, and a stop."""

from __future__ import annotations

import os
import shlex
import signal
import threading
import time

import pytest
import typer

from lmmkit.commands.support import jobs as module
from lmmkit.commands.support.jobs import Job, run_all


def test_jobs_write_logs_and_are_shown(tmp_path):
    shown = []
    both = [Job("one", ["recipes", "list"], tmp_path), Job("eval two", ["explain", "plan/no-view"], tmp_path)]
    run_all(both, lambda jobs: shown.append([job.name for job in jobs]))
    assert shown and shown[0] == ["one", "eval two"]
    assert "quickstart" in (tmp_path / "one.log").read_text()
    assert both[1].log.name == "eval-two.log" and "hint" in both[1].log.read_text()
    assert both[1].last_line()


def test_a_command_is_printed_and_logged_as_a_shell_takes_it(tmp_path, capsys):
    job = Job("one", ["explain", "no such 'code'", "a:fire:b"], tmp_path)
    with pytest.raises(typer.Exit):
        run_all([job], lambda jobs: None)
    expected, lines = ["lmmkit", *job.arguments], capsys.readouterr().err.splitlines()
    for line in (lines[0], job.log.read_text().splitlines()[0]):
        assert shlex.split(line.removeprefix("$ ")) == expected
    assert shlex.split(next(line for line in lines if " failed (" in line).split("`")[1]) == expected


def test_a_command_reports_how_far_it_is(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "SHOWN", 0.1)
    job = Job("data", ["data", "make-scenes", str(tmp_path / "scenes"), "--count", "10000"], tmp_path)
    job.report.write_text("0.9999")  # of an earlier try
    shares, began = [], time.monotonic()

    def show(jobs):
        shares.append(job.share())
        if len({share for share in shares if share}) == 2 or time.monotonic() - began > 60:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_all([job], show)
    assert shares == sorted(shares) and 0 < shares[-1] < 0.5


def test_a_job_that_follows_starts_when_the_one_before_has_ended_well(tmp_path):
    second = Job("second", ["recipes", "list"], tmp_path)
    first = Job("first", ["explain", "plan/no-view"], tmp_path, then=second)
    run_all([first], lambda jobs: None)
    assert second.process is not None and "quickstart" in (tmp_path / "second.log").read_text()
    never = Job("never", ["recipes", "list"], tmp_path)
    with pytest.raises(typer.Exit):
        run_all([Job("bad", ["explain", "no/such-code"], tmp_path, then=never)], lambda jobs: None)
    assert never.process is None


def test_a_failed_job_ends_the_others_and_prints_its_log(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(module, "PATIENCE", 30.0)
    slow = Job("slow", ["data", "make-scenes", str(tmp_path / "scenes"), "--count", "100000"], tmp_path)
    bad = Job("bad", ["explain", "no/such-code"], tmp_path)
    with pytest.raises(typer.Exit) as error:
        run_all([slow, bad], lambda jobs: None)
    assert error.value.exit_code == 2
    assert slow.process is not None and slow.process.returncode != 0
    text = capsys.readouterr().err
    assert "explain/unknown-code" in text and "`lmmkit explain no/such-code` failed" in text


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_stops_the_jobs(tmp_path, signum):
    slow = Job("slow", ["data", "make-scenes", str(tmp_path / "scenes"), "--count", "100000"], tmp_path)

    def later():
        time.sleep(0.3)
        os.kill(os.getpid(), signum)

    threading.Thread(target=later, daemon=True).start()
    with pytest.raises(KeyboardInterrupt):
        run_all([slow], lambda jobs: None)
    assert slow.process is not None and slow.process.poll() is not None
