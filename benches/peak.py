"""python -m benches.peak CASE...: prints the peak memory of one step above that before, in bytes.

A process of its own for each figure: what one side leaves in the allocator must not serve the other.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def peak(run: Callable[[], object]) -> int:
    """Returns the peak bytes of resident memory in a second run, above those before the first (Linux). Memory
    that the allocator kept after the first run, gradients and moments count."""
    before = _status("VmRSS")
    run()
    Path("/proc/self/clear_refs").write_text("5")
    run()
    return _status("VmHWM") - before


def of(*case: str) -> int:
    """Returns the figure of a case (see `main`), measured in a new process."""
    command = [sys.executable, "-m", "benches.peak", *case]
    output = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    return int(output.split()[-1])


def _status(key: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) << 10 for line in lines if line.startswith(f"{key}:"))


def main(kind: str, *case: str) -> None:
    """Takes `step ours|HOW CONFIG METHOD` or `head ours|peer ROWS PICKED`."""
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
