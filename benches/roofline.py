"""python -m benches.roofline [--json FILE]: compares the cost of a step with its lower bound.

The floor of a step is its products at the rate of one large product, and its attention at the rate
of torch's flash kernel on long sequences; that of a generated token is reading the weights once.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F
from rich.console import Console
from rich.table import Table
from torch.utils.flop_counter import FlopCounterMode

import benches.conftest  # noqa: F401 (threads)
from benches.workload import Work, our_step, work

CASES = {
    "llava-S": ("S", "llava", False), "llava-L": ("L", "llava", False), "guided-L": ("L", "guided", False),
    "direct-L": ("L", "direct", False), "direct-L-frozen": ("L", "direct", True),
    "finetune-T": ("T", "finetune", False),
}  # fmt: skip
PRODUCTS = ("mm", "addmm", "bmm", "baddbmm", "convolution", "convolution_backward")


def seconds(run: Callable[[], object], times: int = 7) -> float:
    """Returns the least CPU seconds of several runs, over the number of threads."""
    run()
    found = []
    for _ in range(times):
        start = time.process_time()
        run()
        found.append((time.process_time() - start) / torch.get_num_threads())
    return min(found)


def product_rate(n: int = 1536) -> float:
    """Measures FLOP/s of one large product, float32."""
    a, b, out = (torch.randn(n, n) for _ in range(3))
    return 2 * n**3 / seconds(lambda: torch.mm(a, b, out=out))


def flash_rate(n: int = 2048, heads: int = 8, size: int = 32) -> float:
    """Measures FLOP/s of torch's flash kernel, forward and backward, without a mask (a causal one is uneven)."""
    q, k, v = (torch.randn(1, heads, n, size, requires_grad=True) for _ in range(3))

    def run() -> None:
        F.scaled_dot_product_attention(q, k, v).sum().backward()

    return 14 * heads * size * n**2 / seconds(run)


def read_rate(megabytes: int = 256) -> float:
    """Measures bytes/s of a matrix times a vector that does not fit any cache."""
    a, b = torch.randn(megabytes * 256, 1024), torch.randn(1024)
    return a.nbytes / seconds(lambda: torch.mv(a, b))


def products(step: Callable[[], object]) -> float:
    """Counts the FLOP of a step's products."""
    with FlopCounterMode(display=False) as counter:
        step()
    counts = counter.get_flop_counts()["Global"]
    return sum(n for op, n in counts.items() if str(op).split(".")[1] in PRODUCTS)


def attention(made: Work) -> float:
    """Counts the FLOP of a step's attention: 4 for each visible pair and channel, and 10 backward."""
    batch, config = made.batch(), made.config
    pairs = int(batch.forest.see().sum())
    width, depth, *_ = config.text
    vision, blocks, *_ = config.vision
    seen = len(batch.pixels_ICXY) * config.side**4
    # the encoder is frozen in all of these workloads, and its last block is not built
    return 14 * pairs * width * depth + 4 * seen * vision * (blocks - 1)


def main(out: Path | None) -> None:
    """Prints the table; writes the figures to `out`."""
    rates = {"products": product_rate(), "flash": flash_rate(), "read": read_rate()}
    found: dict[str, dict[str, float]] = {}
    table = Table(title=f"a step over its floor, {torch.get_num_threads()} threads", title_justify="left")
    for column in ("case", "rows", "products GFLOP", "attention GFLOP", "floor s", "step s", "floor / step"):
        table.add_column(column, justify="left" if column == "case" else "right")
    for name, (config, method, frozen) in CASES.items():
        made = work(config, method, frozen=frozen)
        step = our_step(made)
        step()
        flop, attended = products(step), attention(made)
        floor, took = flop / rates["products"] + attended / rates["flash"], seconds(step, 5)
        found[name] = {"products": flop, "attention": attended, "floor": floor, "seconds": took}
        row = (flop / 1e9, attended / 1e9, floor, took, floor / took)
        table.add_row(name, str(len(made.batch())), *(f"{x:.2f}" for x in row))
    console = Console(width=120)
    console.print(table)
    console.print(
        f"one product {rates['products'] / 1e9:.0f} GFLOP/s, flash {rates['flash'] / 1e9:.0f} GFLOP/s, "
        f"read {rates['read'] / 1e9:.1f} GB/s"
    )
    if out is not None:
        out.write_text(
            json.dumps({"torch": torch.__version__, "rates": rates, "steps": found}, indent=1) + "\n"
        )


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--json", type=Path)
    main(parser.parse_args().json)
