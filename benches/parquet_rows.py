"""Measures parquet as a source: python -m benches.parquet_rows [--rows 1000000] [--side 10]

The first pass over a parquet file of messages with their images inside, in groups of 1,000 records; a second opening;
both with a random record. And the memory of a data worker above that of one with ten records. `--side`: of the square
PNG images, which are noise: 10 pixels take about 370 bytes, 182 about 100 kB.
Prints one JSON object; exits with 1 if a bound is missed.
"""

from __future__ import annotations

import argparse
import io
import os
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from benches.rows import measured, seconds, worker_memory
from lmmkit.data.sources.records import open_records
from lmmkit.scenes import write_scenes

SOURCE = "{{kind: messages, records: {}, template: vicuna_v1, image_fit: pad}}"
GROUP, SHARED = 1_000, 500  # records in a group; different images
BOUNDS = {"open_s": ("at most", 2.0), "worker_extra_mb": ("at most", 200.0)}


def noise(side: int) -> list[bytes]:
    """Returns PNG files of random pixels."""
    rng, files = np.random.default_rng(0), []
    for pixels_IXYC in rng.integers(0, 256, (SHARED, side, side, 3), np.uint8):
        file = io.BytesIO()
        Image.fromarray(pixels_IXYC).save(file, "PNG")
        files.append(file.getvalue())
    return files


def groups(count: int, images: list[bytes]) -> Iterator[pa.Table]:
    """Yields the records: one question with its image, and an answer of 20 words."""
    answer = " ".join(["word"] * 20)
    for start in range(0, count, GROUP):
        numbers = range(start, min(count, start + GROUP))
        yield pa.table({
            "id": [str(n) for n in numbers],
            "messages": [
                [{"role": "user", "content": f"<image>\nWhat is number {n}?"}, {"role": "assistant", "content": answer}]
                for n in numbers
            ],
            "images": [[{"bytes": images[n % SHARED], "path": None}] for n in numbers],
        })  # fmt: skip


def write_table(path: Path, count: int, images: list[bytes]) -> None:
    """Writes a parquet file of so many records."""
    tables = groups(count, images)
    first = next(tables)
    with pq.ParquetWriter(path, first.schema, use_dictionary=False) as writer:  # no image twice in its file
        writer.write_table(first)
        for table in tables:
            writer.write_table(table)


def figures(root: Path, count: int, side: int) -> dict[str, float]:
    """Returns all figures."""
    images = noise(side)
    write_scenes(root, count=120, heldout=24, seed=3)
    write_table(root / "many.parquet", count, images)
    write_table(root / "few.parquet", 10, images)
    found = {"rows": count, "image_bytes": len(images[0]), "mb": os.path.getsize(root / "many.parquet") / 1e6}

    def opened():
        options = {"images": None, "template": "vicuna_v1", "image_fit": "pad", "columns": {}}
        return open_records("m", records=root / "many.parquet", **options)[count // 2]

    begin = time.perf_counter()
    found["first_pass_cpu_s"] = seconds(opened)
    found["first_pass_s"] = time.perf_counter() - begin
    found["open_s"] = seconds(opened, time.perf_counter)
    return found | worker_memory(root, SOURCE.format("few.parquet"), SOURCE.format("many.parquet"))


def main() -> None:
    """Prints the figures; exits with 1 if a bound is missed."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--side", type=int, default=10)
    asked = parser.parse_args()
    measured(lambda folder: figures(folder, asked.rows, asked.side), BOUNDS)


if __name__ == "__main__":
    main()
