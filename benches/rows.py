"""Measures data at scale: python -m benches.rows [--rows 1000000] [--keep DIR]

One pass over a LLaVA JSON of so many records, a second opening, the memory of a data worker above that of
one with ten records, and records and image headers a second on one core.
Prints one JSON object; exits with 1 if a bound is missed.
"""

from __future__ import annotations

import argparse
import json
import operator
import os
import random
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from itertools import islice
from pathlib import Path

import torch

from lmmkit.data.image_files.image_file import check_header
from lmmkit.data.loader import load_steps
from lmmkit.data.sources.json_records import read_records
from lmmkit.data.sources.json_stream import Window
from lmmkit.data.sources.record_parser import RecordParser, measure_record
from lmmkit.data.sources.records import missing_images, open_records
from lmmkit.plan.prepare import prepare
from lmmkit.recipe import Recipe, read_text
from lmmkit.scenes import write_scenes
from lmmkit.training.signals import ignore_in_worker
from tests.conftest import MODEL, REST, STAGES, WEIGHTLESS

SOURCE = "{{kind: llava, records: {}, images: ., template: vicuna_v1, image_fit: pad}}"
REPEATS = 25  # the least counts: other load only adds
BOUNDS = {
    "open_s": ("at most", 2.0),
    "worker_extra_mb": ("at most", 200.0),
    "validate_rows_per_s": ("at least", 100_000),
    "headers_per_s": ("at least", 5_000),
}


def write_rows(path: Path, count: int, images: list[str]) -> None:
    """Writes LLaVA records: captions of 30 words on average, one in ten a conversation of five questions."""
    rng = random.Random(0)
    words = ["".join(rng.choices("abcdefghijklmnop", k=rng.randrange(2, 9))) for _ in range(2000)]

    def words_of(n: int) -> str:
        return " ".join(rng.choices(words, k=n))

    with open(path, "w") as file:
        for i in range(count):
            turns = []
            for j in range(5 if i % 10 == 0 else 1):
                turns.append({"from": "human", "value": "<image>\n" * (j == 0) + words_of(10)})
                turns.append({"from": "gpt", "value": words_of(rng.randrange(10, 30))})
            row = {"id": f"{i:09d}", "image": images[i % len(images)], "conversations": turns}
            file.write(("[" if i == 0 else ",\n") + json.dumps(row))
        file.write("]\n")


def recipe(root: Path, source: str) -> Recipe:
    """Returns the tests' plain recipe with this source of its questions, in YAML."""
    text = MODEL + "".join(
        f"    losses: {WEIGHTLESS}\n" if "losses:" in line else line
        for line in STAGES.splitlines(keepends=True)
    )
    text += REST[REST.index("output:") :]
    overrides = [f"data.questions={source}", "speed.workers=2", "model.text.context=1024"]
    return read_text(text, name="rows.yaml", overrides=overrides, root=root)


def uss(pid: int) -> float:
    """Returns the megabytes that no other process shares."""
    lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    return sum(int(line.split()[1]) for line in lines if line.startswith("Private_")) / 1024


def workers_uss(root: Path, source: str) -> float:
    """Returns the megabytes of the larger of two data workers after 20 steps."""
    prepared = prepare(recipe(root, source), data=["questions", "captions"])
    before = children()
    steps = load_steps(prepared.pipeline("finetune"), 0, 40, workers=2, worker_init=ignore_in_worker)
    for _ in range(20):
        next(steps)
    found = max(uss(pid) for pid in children() - before if is_worker(pid))
    steps.close()  # type: ignore[attr-defined]
    return found


def worker_memory(root: Path, few: str, many: str) -> dict[str, float]:
    """Returns the megabytes of a data worker with a source of ten records, and how many more another one takes."""
    least = workers_uss(root, few)
    return {"worker_ten_rows_mb": least, "worker_extra_mb": workers_uss(root, many) - least}


def children() -> set[int]:
    """Returns all descendants of this process."""
    parent = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                stat = (entry / "stat").read_text()
            except OSError:
                continue
            parent[int(entry.name)] = int(stat.rpartition(")")[2].split()[1])
    found: set[int] = {os.getpid()}
    while more := {pid for pid, up in parent.items() if up in found} - found:
        found |= more
    return found - {os.getpid()}


def is_worker(pid: int) -> bool:
    """Returns whether the process has loaded torch: a data worker has, its helpers have not."""
    return "libtorch_cpu" in Path(f"/proc/{pid}/maps").read_text() and uss(pid) > 20


def seconds(do, clock=time.process_time) -> float:
    """Returns the CPU seconds of one call, or those of another clock."""
    begin = clock()
    do()
    return clock() - begin


def figures(root: Path, count: int) -> dict[str, float]:
    """Returns all figures."""
    write_scenes(root, count=120, heldout=24, seed=3)
    images = sorted(str(path.relative_to(root)) for path in (root / "images" / "train").iterdir())
    write_rows(root / "many.json", count, images)
    write_rows(root / "few.json", 10, images)
    options = {"images": root, "template": "vicuna_v1", "image_fit": "pad"}
    found = {"rows": count, "mb": os.path.getsize(root / "many.json") / 1e6}

    def opened():
        return open_records("m", records=root / "many.json", **options)

    begin = time.perf_counter()
    found["first_pass_cpu_s"] = seconds(opened)
    found["first_pass_s"] = time.perf_counter() - begin
    found["open_s"] = seconds(lambda: opened()[count // 2], time.perf_counter)
    found["missing_s"] = seconds(lambda: missing_images(opened()), time.perf_counter)
    with Window(root / "many.json") as window:
        rows = list(islice(read_records(window), 20_000))
    found["validate_rows_per_s"] = len(rows) / min(
        seconds(lambda: [measure_record(row, "vicuna_v1") for row in rows]) for _ in range(REPEATS)
    )
    found["close_look_rows_per_s"] = len(rows) / seconds(
        lambda: [RecordParser(template="vicuna_v1").read(row) for row in rows]
    )
    paths = [root / path for path in images] * 10
    found["headers_per_s"] = len(paths) / min(
        seconds(lambda: [check_header(path, "pad") for path in paths]) for _ in range(REPEATS)
    )
    return found | worker_memory(root, SOURCE.format("few.json"), SOURCE.format("many.json"))


def measured(figures: Callable[[Path], dict[str, float]], bounds: Mapping[str, tuple[str, float]]) -> None:
    """Prints the figures of a folder for data, with one thread and a cache of its own; exits with 1 if a bound is
    missed."""
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        os.environ["LMMKIT_CACHE"] = str(Path(folder) / "cache")
        found = figures(Path(folder) / "data")
    print(json.dumps({name: round(value, 2) for name, value in found.items()}, indent=2))
    sense = {"at most": operator.le, "at least": operator.ge}
    missed = {name: bound for name, bound in bounds.items() if not sense[bound[0]](found[name], bound[1])}
    for name, (word, bound) in missed.items():
        print(f"missed: {name} {found[name]:.1f}, want {word} {bound:g}", file=sys.stderr)
    sys.exit(bool(missed))


def main() -> None:
    """Prints the figures; exits with 1 if a bound is missed."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--keep", type=Path)
    asked = parser.parse_args()
    measured(lambda folder: figures(asked.keep or folder, asked.rows), BOUNDS)


if __name__ == "__main__":
    main()
