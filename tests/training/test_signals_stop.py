"""SIGTERM, SIGINT and SIGUSR1, to a process, its group and torchrun: each ends in a checkpoint, workers or not."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from lmmkit.recipe import read_text
from lmmkit.runs.run_folder import RunFolder
from lmmkit.training import run as run_module
from lmmkit.training import stage_loop
from lmmkit.training.checkpoint import manifest, read
from lmmkit.training.run import train
from lmmkit.training.signals import Interrupted, Stop, exit_code, until
from tests.conftest import PLAIN
from tests.support.killed_runs import end, start

ROOT = Path(__file__).resolve().parent.parent.parent
LONG = ("stages.pretrain.length.steps=100000", "output.save_every=0", "output.images_every=0")
# torchrun forwards these signals; by default not SIGUSR1, which ends torchrun and leaves the run alone
PASSED_ON = "SIGTERM,SIGINT,SIGHUP,SIGQUIT,SIGUSR1"
TORCHRUN = [
    sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "1", "--signals-to-handle", PASSED_ON, "-m",
]  # fmt: skip
FIVE = [signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGTERM, signal.SIGINT]


def wait_for(path: Path, lines: int, seconds: float = 120.0) -> None:
    """Until a file has so many lines."""
    deadline = time.monotonic() + seconds
    while not path.exists() or path.read_bytes().count(b"\n") < lines:
        assert time.monotonic() < deadline, f"{path} is not there"
        time.sleep(0.01)


def assert_saved(run: RunFolder) -> None:
    """Checks that the newest checkpoint is sound, and from the last step that was logged."""
    saved = read.newest(run).path
    assert saved is not None and not manifest.verify(saved)
    assert read.step_of(saved) == run.read_metrics()[-1]["step"]


@pytest.mark.parametrize("signum", [signal.SIGINT, pytest.param(signal.SIGUSR1, marks=pytest.mark.slow)])
def test_a_signal_to_the_group_ends_in_a_checkpoint_with_two_workers(scenes, tmp_path, signum):
    recipe = read_text(PLAIN, overrides=(*LONG, "speed.workers=2"), root=scenes)
    pid = start(recipe, tmp_path / "run")
    wait_for(tmp_path / "run" / "metrics.jsonl", 2)
    os.killpg(pid, signum)
    assert end(pid) == exit_code(signum)
    assert_saved(RunFolder(tmp_path / "run"))


def wait_until_the_group_has_ended(group: int) -> None:
    """Waits until a process group has neither data workers nor what started them."""
    deadline = time.monotonic() + 60
    with pytest.raises(ProcessLookupError):
        while time.monotonic() < deadline:
            os.killpg(group, 0)
            time.sleep(0.1)


@pytest.mark.slow
def test_a_killed_run_leaves_no_process_behind(scenes, tmp_path):
    (tmp_path / "mine.yaml").write_text(PLAIN)
    command = [sys.executable, "-m", "lmmkit", "train", "mine.yaml", "--root", str(scenes), "--out", "run"]
    command += [word for change in (*LONG, "speed.workers=2") for word in ("--set", change)]
    env = os.environ | {"PYTHONPATH": f"{ROOT}:{ROOT / 'plugins'}", "OMP_NUM_THREADS": "1"}
    child = subprocess.Popen(command, cwd=tmp_path, env=env, start_new_session=True)
    wait_for(tmp_path / "run" / "metrics.jsonl", 2, 600)
    child.kill()
    assert child.wait() == -signal.SIGKILL
    wait_until_the_group_has_ended(child.pid)


@pytest.mark.slow
@pytest.mark.parametrize("to", ["pid", "group", "torchrun"])
def test_five_signals_of_a_kind_end_in_a_checkpoint(scenes, tmp_path, to, capsys):
    (tmp_path / "mine.yaml").write_text(PLAIN)
    env = os.environ | {
        "PYTHONPATH": f"{ROOT}:{ROOT / 'plugins'}", "OMP_NUM_THREADS": "1",
    }  # fmt: skip
    for number, signum in enumerate(FIVE):
        out = tmp_path / f"run{number}"
        command = [
            *(TORCHRUN if to == "torchrun" else [sys.executable, "-m"]),
            "lmmkit",
            "train",
            "mine.yaml",
        ]
        command += ["--root", str(scenes), "--out", str(out)]
        command += [word for change in (*LONG, "speed.workers=2") for word in ("--set", change)]
        with (tmp_path / f"output{number}.txt").open("w") as file:
            child = subprocess.Popen(
                command, cwd=tmp_path, env=env, stdout=file, stderr=file, start_new_session=True
            )
        wait_for(out / "metrics.jsonl", 3, 600)
        began = time.monotonic()
        (os.killpg if to == "group" else os.kill)(child.pid, signum)
        while not list((out / "checkpoints").glob("step-*")):
            assert time.monotonic() < began + 60
            time.sleep(0.01)
        seconds = time.monotonic() - began
        code = child.wait(120)
        wait_until_the_group_has_ended(child.pid)
        output = (tmp_path / f"output{number}.txt").read_text()
        assert "stopped by a signal; saved" in output, output
        assert_saved(RunFolder(out))
        if to != "torchrun":
            assert code == exit_code(signum)
        with capsys.disabled():
            gone = time.monotonic() - began
            print(f"{signum.name} to {to}: saved after {seconds:.1f} s, gone after {gone:.1f} s, exit {code}")


def test_a_wait_for_data_ends_at_once():
    with Stop() as stop:

        def items():
            yield 1
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(30)
            yield 2

        began = time.monotonic()
        assert list(until(stop, items())) == [1]
        assert time.monotonic() - began < 20 and stop.requested == signal.SIGTERM
        assert list(until(stop, [3])) == [], "what was asked for before is not forgotten"


def test_what_must_be_ended_in_order_is_not_interrupted():
    with Stop() as stop:
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(0.01)
        assert stop.requested == signal.SIGTERM
        with pytest.raises(Interrupted), stop.interrupting():
            pytest.fail("a block that a stop came before is not begun")
        with pytest.raises(Interrupted):
            stop.check()


def test_a_stop_while_waiting_for_a_step_saves_the_one_before(tiny, tmp_path, monkeypatch):
    recipe = tiny("output.save_every=0", text=PLAIN)
    load = stage_loop.load_steps

    def slow(*args, **kwargs):
        for number, step in enumerate(load(*args, **kwargs)):
            if number == 2:
                os.kill(os.getpid(), signal.SIGTERM)
                time.sleep(30)
            yield step

    monkeypatch.setattr(stage_loop, "load_steps", slow)
    stopped = train(recipe, out=tmp_path / "run")
    assert stopped.signal == signal.SIGTERM and stopped.begun
    assert_saved(stopped.run)
    assert [line["step"] for line in stopped.run.read_metrics()] == [1, 2]


@pytest.mark.parametrize("where", ["preflight", "checkpoint_bytes"])
def test_a_stop_before_the_first_step_ends_at_once(tiny, tmp_path, monkeypatch, where):
    real = getattr(run_module, where)

    def signalled(*args, **kwargs):
        os.kill(os.getpid(), signal.SIGUSR1)
        time.sleep(30)
        return real(*args, **kwargs)

    monkeypatch.setattr(run_module, where, signalled)
    recipe = tiny("stages.pretrain.length.steps=1", "stages.finetune.length.steps=1", text=PLAIN)
    stopped = train(recipe, out=tmp_path / "run")
    assert stopped.signal == signal.SIGUSR1 and not stopped.begun
    monkeypatch.undo()
    assert train(recipe, out=tmp_path / "run", resume=stopped.run.is_run).signal is None
