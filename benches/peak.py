"""python -m benches.peak CASE...: the memory one step takes above what lay there before, in bytes.

A process of its own for each figure: what one side leaves in the allocator must not serve the other.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def peak(run: Callable[[], object]) -> int:
    """Bytes of resident memory at the peak of a second run, above those before the first (Linux): what an
    allocator kept after the first counts too, and so do gradients and moments."""
    before = _status("VmRSS")
    run()
    Path("/proc/self/clear_refs").write_text("5")
    run()
    return _status("VmHWM") - before


def of(*case: str) -> int:
    """The figure of a case, measured in a new process; `case` as `main` takes it."""
    command = [sys.executable, "-m", "benches.peak", *case]
    said = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    return int(said.split()[-1])


def _status(key: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) << 10 for line in lines if line.startswith(f"{key}:"))


def main(kind: str, *case: str) -> None:
    """`step ours|HOW CONFIG METHOD`, or `head ours|peer ROWS PICKED`."""
    import benches.conftest  # noqa: F401 (threads)

    if kind == "step":
        from benches.workload import our_step, peer_step, work

        who, config, method = case
        made = work(config, method)
        print(peak(our_step(made) if who == "ours" else peer_step(made, who)))
    else:
        from benches.test_head import head

        who, *sizes = case
        print(peak(head(who, *map(int, sizes))))


if __name__ == "__main__":
    main(*sys.argv[1:])
