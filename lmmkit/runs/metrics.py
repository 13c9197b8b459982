"""How far a run is, from its growing file of metrics."""

from __future__ import annotations

import json
from pathlib import Path

TAIL = 16_384  # bytes; a line of metrics.jsonl has about 600


def last_step(metrics: Path) -> int:
    """Returns the last step in a growing file of metrics, from its last lines; 0 without any."""
    try:
        with metrics.open("rb") as file:
            file.seek(max(0, metrics.stat().st_size - TAIL))
            lines = file.read().splitlines()
    except OSError:
        return 0
    for line in reversed(lines):
        try:
            return int(json.loads(line)["step"])
        except (ValueError, KeyError, TypeError):  # a line that is not complete, or cut where the tail begins
            continue
    return 0
