"""torchrun itself, as a user starts it: a run, its stops in every way, a message that is printed once."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from lmmkit.runs.run_folder import RunFolder
from lmmkit.training.checkpoint import read
from lmmkit.training.run import train
from tests.training.distributed.test_fsdp import assert_near, mixed  # noqa: F401 (a fixture)
from tests.training.test_run import figures

pytestmark = pytest.mark.slow
ROOT = Path(__file__).resolve().parents[3]


def torchrun(recipe: Path, root: Path, out: Path, *more: str) -> subprocess.Popen:
    """Two ranks, in a process group of their own."""
    command = [
        sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2",
        "--signals-to-handle", "SIGTERM,SIGINT,SIGHUP,SIGQUIT,SIGUSR1", "-m", "lmmkit",
        "train", str(recipe), "--root", str(root), "--out", str(out), *more,
    ]  # fmt: skip
    output = (out.parent / "output.txt").open("w")
    return subprocess.Popen(command, cwd=ROOT, stdout=output, stderr=output, start_new_session=True)


@pytest.fixture
def written(mixed, scenes, tmp_path):  # noqa: F811
    """Returns a function that writes the recipe as a file."""
    from lmmkit.recipe import dump

    def write(*overrides: str) -> Path:
        path = tmp_path / "mixed.yaml"
        path.write_text(dump(mixed(*overrides)))
        return path

    return write


def test_a_run_is_one_process_s(written, mixed, scenes, tmp_path):  # noqa: F811
    path = written("output.save_every=6")
    assert torchrun(path, scenes, tmp_path / "run").wait() == 0, (tmp_path / "output.txt").read_text()
    run = RunFolder(tmp_path / "run")
    output = (tmp_path / "output.txt").read_text()
    assert output.count("done: ") == 1 and output.count("10/10") == 1, output
    one = train(mixed(), out=tmp_path / "one").run
    assert_near(run, one)


@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGINT, signal.SIGUSR1])
@pytest.mark.parametrize("to", ["rank", "all", "torchrun"])
def test_a_signal_sent_in_every_way_ends_in_a_checkpoint(written, scenes, tmp_path, signum, to):
    """Sends signals; SIGUSR1 reaches torchrun's ranks only where `--signals-to-handle` names it."""
    path, out = written("stages.only.length.steps=5000", "speed.workers=1"), tmp_path / "run"
    process = torchrun(path, scenes, out)
    try:
        until = time.monotonic() + 300
        while not (out / "metrics.jsonl").exists() or not (out / "metrics.jsonl").read_bytes():
            assert process.poll() is None and time.monotonic() < until, (tmp_path / "output.txt").read_text()
            time.sleep(0.05)
        if to == "rank":
            os.kill(_ranks(process.pid)[-1], signum)
        elif to == "all":
            for pid in _family(process.pid):
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signum)
        else:
            os.kill(process.pid, signum)
        start = time.monotonic()
        code = process.wait(120)
    finally:
        for pid in _family(process.pid):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
    print(
        f"{signal.Signals(signum).name} to the {to}: torchrun ends with {code} in {time.monotonic() - start:.1f} s"
    )
    run, output = RunFolder(out), (tmp_path / "output.txt").read_text()
    saved = read.newest(run).path
    assert saved is not None and read.step_of(saved) == figures(run)[-1]["step"], output
    assert code != 0 and output.count("stopped by a signal; saved") == 1, output


def test_bad_input_is_reported_once(written, scenes, tmp_path):
    path = written()
    path.write_text(path.read_text().replace("samples: 5", "samples: 0"))
    assert torchrun(path, scenes, tmp_path / "run").wait() != 0
    output = (tmp_path / "output.txt").read_text()
    assert output.count("recipe/out-of-range") == 1 and "exitcode  : 2" in output, output


def _children(pid: int) -> list[int]:
    try:
        return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    except FileNotFoundError:
        return []


def _family(pid: int) -> list[int]:
    """Returns a process and all below it: each of torchrun's ranks has a separate session."""
    return [pid, *(below for child in _children(pid) for below in _family(child))]


def _ranks(torchrun: int) -> list[int]:
    """Process ids of the ranks."""
    return [pid for pid in _children(torchrun) if b"lmmkit" in Path(f"/proc/{pid}/cmdline").read_bytes()]
