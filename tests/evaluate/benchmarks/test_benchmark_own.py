"""A benchmark of one's own: the example of docs/evaluation.md."""

from __future__ import annotations

import json
import re
from pathlib import Path

from lmmkit.evaluate.benchmarks.names import BENCHMARKS

PAGE = (Path(__file__).resolve().parents[3] / "docs" / "evaluation.md").read_text()


def test_the_example_of_the_page_is_a_benchmark(tmp_path):
    (code,) = re.findall(r"```python\n# counting\.py\n(.*?)```", PAGE, re.DOTALL)
    made: dict = {}
    exec(compile(code, "counting.py", "exec"), made)
    counting = made["Counting"]()
    lines = [{"id": str(i), "question": "How many?", "image": "a.png", "number": i} for i in range(3)]
    (tmp_path / "test.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    items = counting.items(tmp_path, split="test", cache=tmp_path)
    verdicts = [
        counting.verdict(item, text) for item, text in zip(items, ("0", "There are 1.", "two"), strict=True)
    ]
    assert [v.score for v in verdicts] == [1, 1, 0] and verdicts[2].parsed is None
    assert counting.figures(items, verdicts)["accuracy"].n == 3
    assert counting.status(items) == "scored" and counting.upload(items, {}) == {}
    assert counting.name not in BENCHMARKS
