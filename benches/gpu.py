"""Measures on a GPU: ceilings, kernels, whole steps compared with transformers.

    python benches/gpu.py --stage first        what has to hold before anything is measured; some minutes
    python benches/gpu.py --out DIR            all stages, each under 8 minutes on an H100 or H200
    python benches/gpu.py --stage kernels      one of them
    python benches/gpu.py --device cpu --tiny  the same road on toy sizes, to see that it runs

A checkout is enough: torch, transformers, and xformers for its backend. One JSON file and one Markdown
table a stage, written as its figures come. Times are medians of interleaved repetitions; every ratio has
its peer in the same run.
"""

from __future__ import annotations

import argparse
import datetime
import json
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from pathlib import Path

import torch

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "plugins")]

from benches import workload  # noqa: E402
from benches.first import first  # noqa: E402
from benches.workload import CONFIGS, Config, our_step, peer_step, work  # noqa: E402
from lmmkit import build  # noqa: E402
from lmmkit.attention.backends import all_backends  # noqa: E402
from lmmkit.attention.forest import roots  # noqa: E402
from lmmkit.attention.interface import Heads  # noqa: E402
from lmmkit.attention.schedule import AttentionSpec  # noqa: E402
from lmmkit.attention.trial import Conditions, refusal  # noqa: E402
from lmmkit.attention_benchmark import measure, reasons  # noqa: E402
from lmmkit.model.decoder import DecoderShape  # noqa: E402
from lmmkit.recipe import Speed  # noqa: E402
from tests.support.tiny_model import text_batch  # noqa: E402

IMAGE = 576
# 7B width, 8 of its 32 layers; CLIP ViT-L/14-336
WIDE = {"vision": (1024, 24, 16), "text": (4096, 8, 32, 11008), "permutations": 10_000}
TINY = {"side": 4, "samples": 2}


def main(args: Sequence[str] | None = None) -> int:
    """Runs the requested stages; returns 1 if something that has to hold does not."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--stage", choices=["all", *STAGES], default="all")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--tiny", action="store_true", help="toy sizes")
    parser.add_argument("--out", type=Path, default=Path("gpu-results"))
    given = parser.parse_args(args)
    given.out.mkdir(parents=True, exist_ok=True)
    bench = Bench(torch.device(given.device), given.tiny)
    broken = 0
    for name in STAGES if given.stage == "all" else [given.stage]:
        start, rows = time.perf_counter(), []
        for row in STAGES[name](bench):
            rows.append(row)
            found = {"stage": name, **bench.machine(), "seconds": time.perf_counter() - start, "rows": rows}
            (given.out / f"{name}.json").write_text(json.dumps(found, indent=1))
            (given.out / f"{name}.md").write_text(markdown(found))
        print(markdown(found), flush=True)
        broken += sum(row.get("broken", False) for row in rows)
    return int(broken > 0)


class Bench:
    """Holds the device, the sizes and the timers."""

    def __init__(self, device: torch.device, tiny: bool):
        self.device, self.tiny = device, tiny
        self.compute = torch.float32 if device.type == "cpu" else torch.bfloat16
        self.repeats = 3 if tiny else 11

    def machine(self) -> dict:
        """Returns what the figures were measured on."""
        name = torch.cuda.get_device_name() if self.device.type == "cuda" else self.device.type
        today = datetime.date.today().isoformat()
        return {"device": name, "torch": torch.__version__, "date": today, "compute": str(self.compute)}

    def seconds(self, *runs: Callable[[], object]) -> list[float]:
        """Returns the median time of each, measured in turn, after a warm-up."""
        times: list[list[float]] = [[] for _ in runs]
        for _ in range(1 + self.repeats):
            for i, run in enumerate(runs):
                self.wait()
                start = time.perf_counter()
                run()
                self.wait()
                times[i].append(time.perf_counter() - start)
        return [statistics.median(each[1:]) for each in times]

    def peak(self, run: Callable[[], object]) -> int:
        """Returns the peak bytes above those before; 0 on a CPU."""
        if self.device.type != "cuda":
            return 0
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        run()
        return torch.cuda.max_memory_allocated() - before

    def wait(self) -> None:
        """Waits until the device is idle."""
        if self.device.type == "cuda":
            torch.cuda.synchronize()


def ceilings(bench: Bench) -> list[dict]:
    """Measures matrix products and copies, the ceilings of the rest, and lists the backends that run."""
    n = 256 if bench.tiny else 8192
    a, b = (torch.randn(n, n, device=bench.device, dtype=bench.compute) for _ in range(2))
    x = torch.empty(n * n * 8, device=bench.device, dtype=bench.compute)
    product, copy = bench.seconds(lambda: a @ b, x.clone)
    rows: list[dict] = [
        {"what": f"{n}^3 product, TFLOP/s", "value": 2 * n**3 / product / 1e12},
        {"what": "copy, TB/s read and written", "value": 2 * x.nbytes / copy / 1e12},
    ]
    why = reasons(bench.device, bench.compute)
    return rows + [{"what": f"backend {name}", "value": reason or "runs"} for name, reason in why.items()]


def parity(bench: Bench) -> list[dict]:
    """Compares every backend with float64, rows without an output gradient included."""
    from tests.support.attention_cases import CASES, inputs, of_backend, of_twin
    from tests.support.plain_twins import off

    limits = (
        {torch.float32: 5e-6} if bench.device.type == "cuda" else {torch.float32: 5e-6, torch.float64: 1e-12}
    )
    rows = []
    for backend in all_backends():
        for dtype, limit in limits.items():
            if refusal(backend, Conditions(bench.device, dtype, Heads(4, 2, 8))):
                continue
            errors = {}
            for name, make in CASES.items():
                case = make()
                given = inputs(len(case.forest), 2)
                got, want = of_backend(backend, case, given, dtype, bench.device), of_twin(case, given)
                errors[name] = max(off(a, b) for a, b in zip(got, want, strict=True))
            broken = [name for name, error in errors.items() if error >= limit]
            rows.append({
                "backend": backend.name, "type": str(dtype), "worst": max(errors.values()), "limit": limit,
                "broken": bool(broken), "cases broken": ", ".join(broken),
            })  # fmt: skip
    return rows


def kernels(bench: Bench) -> list[dict]:
    """Times one layer's attention with the mass of the last R rows on 576 image rows, by backend."""
    sizes = [(n, r) for n in (640, 1024, 2048) for r in (32, 64, 256, 512) if r < n - IMAGE]
    lengths = [(48, 8)] if bench.tiny else sizes
    shape = DecoderShape(
        vocab=32, width=4096, depth=1, heads=4 if bench.tiny else 32, kv_heads=4 if bench.tiny else 32,
        head_size=128, mlp=32, context=4096,
    )  # fmt: skip
    rows = []
    for n, asking in lengths:
        batch = masses(n, asking, 1 if bench.tiny else 8)
        alone = replace(batch, attention=replace(batch.attention, row_R=batch.attention.row_R[:0]))
        plain = {m.backend: m for m in measure(shape, [alone], bench.device, bench.compute)}
        for found in measure(shape, [batch], bench.device, bench.compute):
            if found.seconds is not None:
                over = found.seconds / plain[found.backend].seconds  # type: ignore[operator]
                rows.append({"N": n, "R": asking, **asdict(found), "over attention alone": over})
    return rows


def masses(n: int, asking: int, samples: int):
    """Returns sequences of n rows that begin with an image; the last `asking` rows ask for its mass."""
    batch, row_T = text_batch([[3] * n] * samples), torch.arange(samples * n)
    spec = AttentionSpec(roots([n] * samples), row_T % n < min(IMAGE, n // 2), row_T[row_T % n >= n - asking])
    return replace(batch, attention=spec, last=spec)


def layers(bench: Bench) -> list[dict]:
    """Compares the guided loss with plain, and lmmkit with transformers, at growing batches of plain LLaVA."""
    return [row for samples in ((2,) if bench.tiny else (12, 24, 48)) for row in _against(bench, "L", samples, [
        ("llava", "sdpa", False), ("guided", "eager", False),
    ])]  # fmt: skip


def steps(bench: Bench) -> list[dict]:
    """Compares whole steps of both stages of the paper with three ways to do them in transformers."""
    first = [
        ("llava", "sdpa", True),
        ("direct", "eager", True),
        ("direct", "switched", True),
        ("direct", "sdpa", True),
    ]
    second = [("llava", "sdpa", False), ("finetune", "eager", False), ("finetune", "switched", False)]
    samples = 2 if bench.tiny else 12
    return _against(bench, "L", samples, first) + _against(bench, "T", samples, second)


def compiled(bench: Bench) -> list[dict]:
    """Compares our steps with layers compiled around their attention and without."""
    rows = []
    for name, method, frozen in (("L", "direct", True), ("T", "llava", False), ("T", "finetune", False)):
        _size(bench, name, 2 if bench.tiny else 12)
        made = work("gpu", method, frozen=frozen, device=bench.device, compute=bench.compute)
        step = our_step(made)
        (plain,), plain_peak = bench.seconds(step), bench.peak(step)
        build.set_layers(made.ours, Speed(compile=True))
        start = time.perf_counter()
        step()
        bench.wait()
        first = time.perf_counter() - start
        (fused,) = bench.seconds(step)
        rows.append({
            "config": name, "method": method, "decoder": "frozen" if frozen else "learns", "rows": len(made.batch()),
            "plain ms": 1e3 * plain, "compiled ms": 1e3 * fused, "ratio": plain / fused, "first step s": first,
            "GiB": plain_peak / 2**30, "compiled GiB": bench.peak(step) / 2**30,
        })  # fmt: skip
        del made, step
        torch.compiler.reset()
    return rows


def ablations(bench: Bench) -> list[dict]:
    """Measures a Direct step without each of our optimizations, and the share of the encoder."""
    _size(bench, "L", 2 if bench.tiny else 12)
    made = work("gpu", "direct", device=bench.device, compute=bench.compute)
    apart = work("gpu", "direct", share=False, device=bench.device, compute=bench.compute)
    batch, vision = made.batch(), made.ours.lmm.vision
    pixels, wide = batch.pixels_ICXY.to(bench.device), bench.compute != torch.float32
    step, untrimmed, unshared = (
        our_step(made),
        our_step(made, replace(batch, last=batch.attention)),
        our_step(apart),
    )

    def recomputed() -> None:
        build.set_layers(made.ours, Speed(recompute="all"))
        step()
        build.set_layers(made.ours, Speed())

    @torch.no_grad()
    def encode() -> None:
        with torch.autocast(bench.device.type, bench.compute, enabled=wide):
            vision(pixels)

    runs = {
        "as it is": step, "last layer for all rows": untrimmed, "prefixes not shared": unshared,
        "every block recomputed": recomputed, "the encoder alone": encode,
    }  # fmt: skip
    times = bench.seconds(*runs.values())
    return [
        {"what": what, "ms": 1e3 * took, "over as it is": took / times[0], "GiB": bench.peak(run) / 2**30}
        for (what, run), took in zip(runs.items(), times, strict=True)
    ]


def _against(bench: Bench, name: str, samples: int, cases: Sequence[tuple[str, str, bool]]) -> list[dict]:
    _size(bench, name, samples)
    rows, plain = [], None
    for method, how, frozen in cases:
        made = work("gpu", method, frozen=frozen, device=bench.device, compute=bench.compute)
        batch, ours, peer = made.batch(), our_step(made), peer_step(made, how)
        apart = abs(ours() - peer()) if how != "sdpa" or method == "llava" else None
        mine, theirs = bench.seconds(ours, peer)
        plain = mine if method == "llava" else plain
        rows.append({
            "config": name, "method": method, "decoder": "frozen" if frozen else "learns", "rows": len(batch),
            "ms": 1e3 * mine, "peer": f"transformers, {how}", "peer ms": 1e3 * theirs, "ratio": theirs / mine,
            "over our plain": mine / plain if plain else None, "TFLOP/s": flops(made, batch, frozen) / mine / 1e12,
            "GiB": bench.peak(ours) / 2**30, "peer GiB": bench.peak(peer) / 2**30, "losses apart": apart,
        })  # fmt: skip
        del made, ours, peer
        if bench.device.type == "cuda":
            torch.cuda.empty_cache()
    return rows


def _size(bench: Bench, name: str, samples: int) -> None:
    """Sets the config `gpu` to this one, at the width of the bench."""
    base: Config = replace(CONFIGS[name], samples=samples, **({} if bench.tiny else WIDE))
    workload.CONFIGS["gpu"] = replace(base, **TINY) if bench.tiny else base


def flops(made, batch, frozen: bool) -> float:
    """Returns the operations of the decoder's matrices in a step: 4 a weight and row if frozen, else 6. Their
    TFLOP/s over the measured product is the utilisation."""
    weights = sum(p.numel() for p in made.ours.lmm.decoder.blocks.parameters())
    return (4 if frozen else 6) * weights * len(batch)


def markdown(found: dict) -> str:
    """Returns a stage's figures as a table."""
    rows = found["rows"]
    columns = list(dict.fromkeys(key for row in rows for key in row))
    of = f"{found['device']}, torch {found['torch']}, {found['date']}"
    head = f"## {found['stage']}: {of}, {found['seconds']:.0f} s\n\n"
    lines = ["| " + " | ".join(columns) + " |", "|" + "---|" * len(columns)]
    lines += ["| " + " | ".join(_cell(row.get(column)) for column in columns) + " |" for row in rows]
    return head + "\n".join(lines) + "\n"


def _cell(value: object) -> str:
    if isinstance(value, float):
        return f"{value:.1e}" if 0 < abs(value) < 1e-2 else f"{value:,.2f}"
    if isinstance(value, tuple | list):
        return " ".join(map(_cell, value))
    return "" if value is None else str(value)


STAGES = {
    "first": first, "ceilings": ceilings, "parity": parity, "kernels": kernels, "layers": layers, "steps": steps,
    "compiled": compiled, "ablations": ablations,
}  # fmt: skip

if __name__ == "__main__":
    sys.exit(main())
