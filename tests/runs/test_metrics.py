"""How far a run is."""

from __future__ import annotations

import json

from lmmkit.runs.metrics import last_step


def test_the_last_step_is_read_from_the_end(tmp_path):
    path = tmp_path / "metrics.jsonl"
    assert last_step(path) == 0
    path.write_text("")
    assert last_step(path) == 0
    lines = [json.dumps({"step": i, "words": "x" * 500}) for i in range(1, 301)]
    path.write_text("\n".join(lines) + "\n" + '{"step": 301, "wor')
    assert last_step(path) == 300
