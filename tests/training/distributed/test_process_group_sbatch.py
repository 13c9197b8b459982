"""docs/train.sbatch with stand-ins for SLURM's two commands: two nodes, which are two torchruns of this host."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from lmmkit.recipe import dump
from lmmkit.runs.run_folder import RunFolder
from lmmkit.training.checkpoint import read
from lmmkit.training.run import train
from tests.training.distributed.test_fsdp import assert_near, mixed  # noqa: F401 (a fixture)

pytestmark = pytest.mark.slow
ROOT = Path(__file__).resolve().parents[3]

# as SLURM's: a task a node, a signal goes on to each, the first failure is the job's
SRUN = f"""#!{sys.executable}
import os, signal, subprocess, sys
words = [word for word in sys.argv[1:] if not word.startswith("--kill-on-bad-exit")]
nodes = [subprocess.Popen(words, start_new_session=True) for _ in range(int(os.environ["SLURM_NNODES"]))]
for number in (signal.SIGTERM, signal.SIGINT):
    signal.signal(number, lambda which, frame: [node.send_signal(which) for node in nodes])
sys.exit(max(node.wait() for node in nodes))
"""


@pytest.fixture
def sbatch(mixed, scenes, tmp_path):  # noqa: F811
    """Runs the script's body as a job of two nodes, one rank each."""
    commands = tmp_path / "bin"
    commands.mkdir()
    launcher = f'#!/bin/sh\nexec {sys.executable} -m torch.distributed.run "$@"\n'
    for name, text in (("srun", SRUN), ("scontrol", "#!/bin/sh\necho localhost\n"), ("torchrun", launcher)):
        (commands / name).write_text(text)
        (commands / name).chmod(0o755)

    def start(out: Path, *overrides: str) -> subprocess.Popen:
        recipe = tmp_path / "mixed.yaml"
        recipe.write_text(dump(mixed(*overrides)))
        env = os.environ | {
            "PATH": f"{commands}:{os.environ['PATH']}", "SLURM_JOB_NODELIST": "here", "SLURM_JOB_ID": "7",
            "SLURM_NNODES": "2", "SLURM_GPUS_ON_NODE": "1", "OMP_NUM_THREADS": "1",
        }  # fmt: skip
        output = (tmp_path / "output.txt").open("a")
        command = ["bash", str(ROOT / "docs" / "train.sbatch"), str(recipe), str(out), str(scenes)]
        return subprocess.Popen(
            command, cwd=ROOT, env=env, stdout=output, stderr=output, start_new_session=True
        )

    return start


def test_two_nodes_train_what_one_process_trains(sbatch, mixed, tmp_path):  # noqa: F811
    assert sbatch(tmp_path / "run").wait(300) == 0, (tmp_path / "output.txt").read_text()
    assert_near(RunFolder(tmp_path / "run"), train(mixed(), out=tmp_path / "one").run)


def test_a_job_that_was_stopped_continues_when_it_is_submitted_again(sbatch, tmp_path):
    out = tmp_path / "run"
    job = sbatch(out, "stages.only.length.steps=40")
    until = time.monotonic() + 200
    while not (out / "metrics.jsonl").exists() or not (out / "metrics.jsonl").read_bytes():
        assert job.poll() is None and time.monotonic() < until, (tmp_path / "output.txt").read_text()
        time.sleep(0.05)
    job.send_signal(signal.SIGTERM)
    assert job.wait(60) != 0
    saved = read.newest(RunFolder(out)).path
    assert saved is not None and 0 < read.step_of(saved) < 40, (tmp_path / "output.txt").read_text()
    assert sbatch(out, "stages.only.length.steps=40").wait(300) == 0, (tmp_path / "output.txt").read_text()
    steps = [line["step"] for line in RunFolder(out).read_metrics()]
    assert steps == list(range(1, 41))
