"""python -m benches.saves [--mb 400] [--rounds 7] [--at DIR]: what a checkpoint costs over its bytes.

Raw is one file of as many bytes, written and synced. A round is raw, a save that the loop waits for,
one beside the loop, which computes meanwhile, and one in a stage where one tensor learns, after its first
two; the ratios are taken round by round, because a disk is never the same twice. Ends with 1 where the
median misses its gate.
"""

from __future__ import annotations

import argparse
import os
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import torch

from lmmkit.runs.run_folder import RunFolder
from lmmkit.training.checkpoint.saver import Saver
from lmmkit.training.distributed.process_group import ALONE

GATES = {"synchronous / raw": 1.75, "blocked / synchronous": 0.25, "one tensor learns / synchronous": None}


def raw(folder: Path, tensors: dict[str, torch.Tensor]) -> float:
    """Seconds to write the bytes and have them on the disk."""
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


def saved(
    saver: Saver, step: int, tensors: dict[str, torch.Tensor], frozen: Sequence[str] = ()
) -> tuple[float, float]:
    """Seconds until the loop may go on, and until the checkpoint is there."""
    start = time.perf_counter()
    saver.save(step, tensors, {"step": step}, frozen)
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
        waiting, beside, linking = (
            Saver(RunFolder(folder / name), keep=2, ranks=ALONE, beside=name == "beside") for name in names
        )
        for name in names:
            (folder / name).mkdir()
        saved(beside, 0, tensors)  # its copy is made once a stage
        frozen = list(tensors)[1:]
        for step in (0, 1):
            saved(linking, step, tensors, frozen)
        for step in range(2, asked.rounds + 2):
            plain, (_, whole), (blocked, behind), (_, linked) = (
                raw(folder, tensors), saved(waiting, step, tensors), saved(beside, step, tensors),
                saved(linking, step, tensors, frozen),
            )  # fmt: skip
            found["synchronous / raw"].append(whole / plain)
            found["blocked / synchronous"].append(blocked / whole)
            found["one tensor learns / synchronous"].append(linked / whole)
            print(
                f"raw {plain:.2f} s  synchronous {whole:.2f} s  blocked {blocked:.3f} s of {behind:.2f} s beside"
                f"  one tensor learns {linked:.3f} s"
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
