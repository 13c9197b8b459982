"""A loss divided by the sum of its weights on two ranks, whose shares of the sum differ: the figures of one process."""

from __future__ import annotations

import pytest

from lmmkit.training.run import train
from tests.training.distributed.test_fsdp import MIXED, assert_near, mixed, model_of, trained  # noqa: F401

WEIGHTS = """
from dataclasses import dataclass
from lmmkit.api import TokenWeight, hookimpl

@dataclass(frozen=True, kw_only=True)
class Mine(TokenWeight):
    def spans(self, sample, text):
        first = text.split(" ")[0]
        return [(0, len(first), 1 + len(sample.key) % 3), (0, len(text) + 1, 0.5 if len(text) % 2 else 3.0)]

@hookimpl
def lmmkit_components():
    return {"mine": Mine}
"""


@pytest.mark.slow
def test_two_ranks_divide_by_the_sum_of_all_weights(mixed, tiny, tmp_path):  # noqa: F811
    (tmp_path / "mine.py").write_text(WEIGHTS)
    text = MIXED.replace("plugins:\n", f"plugins:\n  mine: {{use: {tmp_path / 'mine.py'}}}\n", 1)
    by_count = text.replace("next_token: 1.0", "next_token: {weight: 1.0, by: [mine]}")
    recipe = tiny(text=by_count.replace("by: [mine]", "by: [mine], per: weight"))
    one = train(recipe, out=tmp_path / "one", trust_files=True).run
    count = train(tiny(text=by_count), out=tmp_path / "count", trust_files=True).run
    lines, others = one.read_metrics(), count.read_metrics()
    assert lines[0]["terms/next_token"] != pytest.approx(others[0]["terms/next_token"], rel=1e-2)
    run = trained(2, recipe, tmp_path / "two", trust_files=True)
    assert_near(run, one, rel=5e-6)
    ours, theirs = model_of(run, "only"), model_of(one, "only")
    for name, tensor in ours.items():
        if not name.endswith("qkv.bias"):  # that of keys has no gradient but rounding, which Adam makes large
            assert (tensor - theirs[name]).norm() <= 1e-4 * theirs[name].norm(), name
