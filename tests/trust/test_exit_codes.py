"""Exit codes of the real command: 0, 2, 3, 1, 130, 143; and a folder's own modules are not run."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time

import pytest

from lmmkit.cli import main
from tests.support.hostile_home import home_in, make_base

ENV = {**os.environ, "PYTHONPATH": os.pathsep.join(p for p in sys.path if p), "PYTHONDONTWRITEBYTECODE": "1"}


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return make_base(tmp_path_factory.mktemp("base"))


@pytest.fixture
def home(tmp_path, base):
    return home_in(tmp_path, base)


def lmmkit(home, *words: object, **options) -> subprocess.CompletedProcess:
    command = [sys.executable, "-m", "lmmkit", *map(str, words)]
    return subprocess.run(
        command, cwd=home.path, env=ENV, capture_output=True, text=True, check=False, **options
    )


def test_done_is_0_and_no_module_of_the_folder_is_run(home):
    for name in ("typer.py", "numpy.py", "torch.py", "sitecustomize.py", "ruamel.py"):
        (home.path / name).write_text(home.python)
    done = lmmkit(home, "data", "check", "recipe.yaml")
    assert done.returncode == 0, done.stderr
    assert sorted(path.name for path in home.outside.iterdir()) == ["secret.png", "secret.txt"]


def test_the_user_s_input_is_2_and_never_a_traceback(home):
    home.edit("seed: 5", "seed: no")
    done = lmmkit(home, "train", "recipe.yaml", "--out", "out")
    assert done.returncode == 2 and "recipe.yaml:2:" in done.stderr and "Traceback" not in done.stderr


def test_the_machine_is_3(home):
    done = lmmkit(home, "train", "recipe.yaml", "--out", "/proc/absent/run")
    assert done.returncode == 3 and "run/cannot-write" in done.stderr and "Traceback" not in done.stderr


def test_events_hold_no_text_of_the_data_and_no_path(base):
    events = b"".join(path.read_bytes() for path in (base / "run" / "tb").rglob("*") if path.is_file())
    assert b"terms/next_token" in events or b"loss" in events
    for word in (b"What is it", b"A cat", b"a.png", b"rows.json", str(base).encode()):
        assert word not in events


STOPS = pytest.mark.parametrize(
    "number, code", [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGUSR1, 143)]
)
TRAIN = ("train", "recipe.yaml", "--out", "out")


def _first_step(home) -> None:
    metrics, until = home.path / "out" / "metrics.jsonl", time.monotonic() + 600
    while not (metrics.is_file() and metrics.stat().st_size):
        assert time.monotonic() < until
        time.sleep(0.05)


def _stopped(home, code: int, got: int, output: str) -> None:
    assert got == code, output
    assert "Traceback" not in output and list(
        (home.path / "out" / "checkpoints").glob("step-*/manifest.json")
    )


@STOPS
def test_a_stop_is_130_or_143_with_a_checkpoint(home, number, code):
    """Runs the command's `main` in a child forked from here: nothing is imported again."""
    home.edit("steps: 2}", "steps: 100000}")
    pid = os.fork()
    if pid == 0:
        with open(home.path / "output.txt", "w") as file:
            os.dup2(file.fileno(), 1)
            os.dup2(file.fileno(), 2)
        sys.stdout, sys.stderr = os.fdopen(1, "w"), os.fdopen(2, "w")
        os.chdir(home.path)
        sys.argv = ["lmmkit", *TRAIN]
        try:
            main()
        except SystemExit as end:
            os._exit(end.code)
        finally:
            os._exit(1)
    _first_step(home)
    os.kill(pid, number)
    _, status = os.waitpid(pid, 0)
    _stopped(home, code, os.waitstatus_to_exitcode(status), (home.path / "output.txt").read_text())


@pytest.mark.slow
@STOPS
def test_a_stop_of_the_real_process_is_too(home, number, code):
    home.edit("steps: 2}", "steps: 100000}")
    command = [sys.executable, "-m", "lmmkit", *TRAIN]
    with subprocess.Popen(command, cwd=home.path, env=ENV, stderr=subprocess.PIPE, text=True) as process:
        _first_step(home)
        process.send_signal(number)
        _, output = process.communicate()
    _stopped(home, code, process.returncode, output)
