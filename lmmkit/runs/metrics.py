"""How far a run is, from its growing file of metrics."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

TAIL = 16_384  # bytes; a line of metrics.jsonl has about 600


def last_step(metrics: Path) -> int:
    """Returns the last step in a growing file of metrics, from its last lines; 0 without any."""
    return next((record["step"] for record in reversed(last_records(metrics, TAIL))), 0)


def last_records(metrics: Path, size: int) -> list[dict[str, Any]]:
    """Returns the records with a step in the last `size` bytes of a growing file of metrics; [] without the file."""
    try:
        with metrics.open("rb") as file:
            file.seek(max(0, metrics.stat().st_size - size))
            lines = file.read().splitlines()
    except OSError:
        return []
    found = []
    for line in lines:
        try:
            record = json.loads(line)
        except (ValueError, RecursionError):  # a line that is not complete, or cut where the tail begins
            continue
        if isinstance(record, dict) and type(record.get("step")) is int:
            found.append(record)
    return found
