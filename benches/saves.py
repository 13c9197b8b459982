"""python -m benches.saves [--mb 400] [--rounds 7] [--at DIR]: times saves, compared with writing their bytes.

Raw is one file of as many bytes, written and synced. A round is raw, a save that the loop waits for,
one beside the loop, which computes meanwhile, and one in a stage that trains one tensor, after its first;
the ratios are taken round by round, because a disk is never the same twice. The first save of such a stage
writes the frozen weights twice. Ends with 1 where the median misses its gate.
"""

from __future__ import annotations

import argparse
import os
import shutil
import statistics
import sys
import tempfile
import time
from pathlib import Path

import torch

from lmmkit.runs.run_folder import RunFolder
from lmmkit.training.checkpoint.saver import Saver
from lmmkit.training.distributed.process_group import ALONE

LATER = "one tensor trained / synchronous"
GATES = {"synchronous / raw": 1.75, "blocked / synchronous": 0.25, LATER: None}


def raw(folder: Path, tensors: dict[str, torch.Tensor]) -> float:
    """Returns the seconds until the bytes are on the disk."""
    path = folder / "raw"
    start = time.perf_counter()
    with path.open("wb", buffering=0) as file:
        for tensor in tensors.values():
            data = tensor.view(-1).view(torch.uint8).numpy().data
            while data:
                data = data[file.write(data) :]
        os.fsync(file.fileno())
    took = time.perf_counter() - start
    path.unlink()
    return took


def saved(saver: Saver, step: int, tensors: dict[str, torch.Tensor]) -> tuple[float, float]:
    """Returns the seconds until the loop continues, and until the checkpoint is complete."""
    start = time.perf_counter()
    saver.save(step, tensors, {"step": step})
    blocked = time.perf_counter() - start
    saver.wait()
    return blocked, time.perf_counter() - start


def main() -> int:
    """Prints every round and the medians."""
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--mb", type=int, default=400)
    options.add_argument("--rounds", type=int, default=7)
    options.add_argument("--at", type=Path, default=Path(tempfile.gettempdir()))
    asked = options.parse_args()
    torch.set_num_threads(1)
    tensors = {f"w{n}": torch.randn(1 << 20) for n in range(asked.mb // 4)}
    folder = Path(tempfile.mkdtemp(dir=asked.at))
    found: dict[str, list[float]] = {name: [] for name in GATES}
    try:
        names = ("waiting", "beside", "frozen")
        frozen = dict(list(tensors.items())[1:])
        waiting, beside, lean = (
            Saver(
                RunFolder(folder / name), keep=2, ranks=ALONE, in_thread=name == "beside",
                frozen=frozen if name == "frozen" else {},
            )
            for name in names
        )  # fmt: skip
        for name in names:
            (folder / name).mkdir()
        saved(beside, 0, tensors)  # its copy is made once a stage
        _, first = saved(lean, 0, tensors)
        print(f"first save with one tensor trained {first:.2f} s")
        for step in range(1, asked.rounds + 1):
            plain, (_, whole), (blocked, behind), (_, later) = (
                raw(folder, tensors), saved(waiting, step, tensors), saved(beside, step, tensors),
                saved(lean, step, tensors),
            )  # fmt: skip
            found["synchronous / raw"].append(whole / plain)
            found["blocked / synchronous"].append(blocked / whole)
            found[LATER].append(later / whole)
            print(
                f"raw {plain:.2f} s  synchronous {whole:.2f} s  blocked {blocked:.3f} s of {behind:.2f} s beside"
                f"  one tensor trained {later:.3f} s"
            )
    finally:
        shutil.rmtree(folder)
    missed = False
    for name, ratios in found.items():
        median, gate = statistics.median(ratios), GATES[name]
        missed |= gate is not None and median > gate
        bound = f"; at most {gate}" if gate is not None else ""
        print(f"{name}: {median:.2f} ({min(ratios):.2f} to {max(ratios):.2f}){bound}")
    return int(missed)


if __name__ == "__main__":
    sys.exit(main())
