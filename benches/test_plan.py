"""Host time for a batch of 64 samples with three views each, and the time of a step by its rows."""

import statistics
import time
from dataclasses import replace

import pytest
import torch

from benches import workload
from benches.pairs import exact
from benches.workload import CONFIGS, our_step, work
from lmmkit.data.micro_batch.packed_images import read_images

SAMPLES = 64
MILLISECONDS = 2.0


def milliseconds(run) -> list[float]:
    """Returns 15 CPU times."""
    times = []
    for _ in range(15):
        start = time.process_time()
        run()
        times.append(1e3 * (time.process_time() - start))
    return sorted(times)


@pytest.fixture(scope="module")
def made(request):
    config = replace(CONFIGS["L"], samples=SAMPLES)
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(workload.CONFIGS, "L", config)
        yield work("L", "direct")


@pytest.mark.parametrize("what", ["calls", "calls of the last layer", "the whole packing"])
def test_host_plan(what, made, benchmark):
    packer, side = made.packer, made.config.side
    samples = [packer.sized(members) for members in made.views]
    one_pixel_a_patch = torch.zeros(3, side, side, dtype=torch.uint8)  # the plan alone is measured
    images = read_images(samples, lambda image, fit: one_pixel_a_patch)
    batch = packer.pack(samples, images)[0]
    runs = {
        "calls": lambda: replace(batch.attention).calls,
        "calls of the last layer": lambda: replace(batch.last).calls,
        "the whole packing": lambda: packer.pack(samples, images),
    }
    times = milliseconds(runs[what])
    gate = None if what == "the whole packing" else 1.0
    benchmark.extra_info.update(
        exact(statistics.median(times) / MILLISECONDS), sense="at most", gate=gate, target=None, loss_diff=None,
        milliseconds=times, rows=len(batch), peer=f"{MILLISECONDS} ms of one core, for {SAMPLES} samples",
    )  # fmt: skip
    benchmark.pedantic(runs[what], rounds=1)


GROWTH = {"4k": 7, "8k": 14, "16k": 28, "32k": 56}  # samples of about 600 rows


def test_time_a_row_stays_as_the_batch_grows(benchmark):
    """Attends within samples, so attention grows with the rows too; growth beyond that is overhead."""
    steps, rows = {}, {}
    with pytest.MonkeyPatch.context() as patch:
        for name, samples in GROWTH.items():
            patch.setitem(workload.CONFIGS, "L", replace(CONFIGS["L"], samples=samples))
            made = work("L", "llava")
            rows[name], steps[name] = len(made.batch()), our_step(made)
    times: dict[str, list[float]] = {name: [] for name in steps}
    for _ in range(6):
        for name, step in steps.items():
            start = time.process_time()
            step()
            times[name].append((time.process_time() - start) / rows[name])
    best = {name: min(each[1:]) for name, each in times.items()}
    ratio = max(best.values()) / min(best.values())
    benchmark.extra_info.update(
        exact(ratio), sense="at most", gate=1.1, target=None, loss_diff=None, rows=rows,
        microseconds_a_row={name: 1e6 * t for name, t in best.items()},
        peer="the batch size at which a row is cheapest (least of 5, processor time)",
    )  # fmt: skip
    benchmark.pedantic(lambda: None, rounds=1)
