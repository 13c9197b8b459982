"""Checks NCCL, which needs GPUs: runs a small recipe on 1 to 8 GPUs and compares the logged figures.

    python benches/nccl.py [--most 8]       in a checkout, on a machine with CUDA devices

For each of 1, 2, 4 and 8 ranks that there are devices for (one by torchrun is one process): a run in
float32; of two and more also one in bfloat16, a SIGTERM in the middle, and `--resume` on one device.
Ends with 1 where a figure of float32 is further than 1e-4, relative, from one device's (kernels may sum
in any order), or a stop leaves no sound checkpoint.
Run so far with `--cpu` alone, which takes the same road with gloo (docs/cluster.md): there was no GPU.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "plugins")]

from lmmkit.runs.run_folder import RunFolder  # noqa: E402
from lmmkit.scenes import write_scenes  # noqa: E402
from lmmkit.training.checkpoint import read  # noqa: E402

NEAR = 1e-4
SHORT = [f"stages.{stage}.length.steps=10" for stage in ("pretrain", "finetune")] + ["output.images_every=0"]


def start(ranks: int, root: Path, out: Path, *changes: str, more: tuple[str, ...] = ()) -> subprocess.Popen:
    """Trains the quickstart's recipe by torchrun."""
    sets = [word for change in (*SHORT, *changes) for word in ("--set", change)]
    command = [
        sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(ranks), "-m", "lmmkit",
        "train", "quickstart", "--root", str(root), "--out", str(out), *sets, *more,
    ]  # fmt: skip
    return subprocess.Popen(command, cwd=ROOT)


def figures(out: Path) -> list[dict[str, float]]:
    """Returns the logged figures that depend neither on the clock nor on shared prompts."""
    skip = ("seconds", "tokens", "tokens_per_second")
    return [
        {k: v for k, v in line.items() if isinstance(v, float) and k not in skip}
        for line in RunFolder(out).read_metrics()
    ]


def farthest(ours: list[dict[str, float]], theirs: list[dict[str, float]]) -> float:
    """Returns the largest relative difference of any figure."""
    return max(
        abs(a[key] - b[key]) / max(abs(b[key]), 1e-12) for a, b in zip(ours, theirs, strict=True) for key in b
    )


def stopped(ranks: int, root: Path, out: Path) -> bool:
    """Returns whether a SIGTERM leaves a checkpoint of the last step from which one device resumes."""
    process = start(ranks, root, out, "stages.pretrain.length.steps=2000")
    while not RunFolder(out).metrics.exists() or not RunFolder(out).metrics.read_bytes():
        if process.poll() is not None:
            return False
        time.sleep(0.1)
    os.kill(process.pid, signal.SIGTERM)
    process.wait()
    saved = read.newest(RunFolder(out)).path
    at = RunFolder(out).read_metrics()[-1]["step"]
    process = start(1, root, out, "stages.pretrain.length.steps=2000", more=("--resume",))
    while process.poll() is None and RunFolder(out).read_metrics()[-1]["step"] < at + 3:
        time.sleep(0.1)
    process.terminate()
    process.wait()
    return saved is not None and read.step_of(saved) == at < RunFolder(out).read_metrics()[-1]["step"]


def main() -> int:
    """Prints one line for each run."""
    options = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    options.add_argument("--most", type=int, default=8)
    options.add_argument("--cpu", action="store_true", help="use gloo on the CPU, to check this script")
    asked = options.parse_args()
    there = asked.most if asked.cpu else min(torch.cuda.device_count(), asked.most)
    bad, first = 0, None
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder) / "scenes"
        write_scenes(root, count=200, heldout=24, seed=3)
        for ranks in (n for n in (1, 2, 4, 8) if n <= there):
            out = Path(folder) / f"{ranks}"
            code = start(ranks, root, out, "numerics.compute=float32").wait()
            found: dict[str, float] = {"ranks": ranks, "exit": code}
            if code == 0:
                first = first or figures(out)
                found["farthest"] = farthest(figures(out), first)
                bad += found["farthest"] > NEAR
            bad += code != 0
            if ranks > 1:
                found["bfloat16"] = start(
                    ranks, root, Path(folder) / f"{ranks}-16", "numerics.compute=bfloat16"
                ).wait()
                found["stopped"] = stopped(ranks, root, Path(folder) / f"{ranks}-stopped")
                bad += found["bfloat16"] != 0 or not found["stopped"]
            print(json.dumps(found), flush=True)
    return int(bad > 0 or first is None)


if __name__ == "__main__":
    sys.exit(main())
