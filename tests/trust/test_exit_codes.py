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


def lmmkit(home, *words: object, **environment: str) -> subprocess.CompletedProcess:
    command = [sys.executable, "-m", "lmmkit", *map(str, words)]
    return subprocess.run(
        command, cwd=home.path, env=ENV | environment, capture_output=True, text=True, check=False
    )


def forked(home, *words: str) -> int:
    """Runs the command's `main` in a child forked from here: nothing is imported again. Returns its pid."""
    pid = os.fork()
    if pid == 0:
        try:
            with open(home.path / "output.txt", "w") as file:
                os.dup2(file.fileno(), 1)
                os.dup2(file.fileno(), 2)
            sys.stdout, sys.stderr = os.fdopen(1, "w"), os.fdopen(2, "w")
            os.chdir(home.path)
            sys.argv = ["lmmkit", *words]
            main()
        except SystemExit as end:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(end.code)
        finally:
            os._exit(1)
    return pid


def ended(home, pid: int) -> tuple[int, str]:
    """Waits for the child `forked`; returns its exit code and its output."""
    _, status = os.waitpid(pid, 0)
    return os.waitstatus_to_exitcode(status), (home.path / "output.txt").read_text()


def test_done_is_0_and_no_module_of_the_folder_is_run(home):
    for name in ("typer.py", "numpy.py", "torch.py", "sitecustomize.py", "ruamel.py"):
        (home.path / name).write_text(home.python)
    done = lmmkit(home, "data", "check", "recipe.yaml")
    assert done.returncode == 0, done.stderr
    assert sorted(path.name for path in home.outside.iterdir()) == ["secret.png", "secret.txt"]


def test_the_user_s_input_is_2_and_never_a_traceback(home):
    """Refuses a recipe with a mistake before torch is imported, which takes seconds."""
    home.edit("seed: 5", "seed: no")
    done = lmmkit(home, "train", "recipe.yaml", "--out", "out", PYTHONPROFILEIMPORTTIME="1")
    assert done.returncode == 2 and "recipe.yaml:2:" in done.stderr and "Traceback" not in done.stderr
    imported = {line.rpartition("|")[2].strip() for line in done.stderr.splitlines()}
    assert "lmmkit.recipe" in imported and "torch" not in imported


def test_the_machine_is_3(home):
    pid = forked(home, "train", "recipe.yaml", "--out", "/proc/absent/run")
    code, output = ended(home, pid)
    assert code == 3 and "run/cannot-write" in output and "Traceback" not in output


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
    home.edit("steps: 2}", "steps: 100000}")
    pid = forked(home, *TRAIN)
    _first_step(home)
    os.kill(pid, number)
    _stopped(home, code, *ended(home, pid))


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
