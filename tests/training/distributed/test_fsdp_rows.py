"""Weights of rows and losses of whole rows on two ranks: the figures and weights of one process."""

from __future__ import annotations

from pathlib import Path

import pytest

from lmmkit.training.run import train
from tests.training.distributed.test_fsdp import MIXED, assert_near, mixed, model_of, trained  # noqa: F401

ZOO = Path(__file__).resolve().parents[3] / "plugins" / "lmmkit_zoo"
FILES = {
    "focal": "focal.py", "blind": "cal.py", "cal": "cal.py", "label_smoothing": "label_smoothing.py",
    "z_loss": "z_loss.py",
}  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("recompute", ["none", "all"])
def test_two_ranks_give_one_process_s_figures(mixed, tiny, tmp_path, recompute):  # noqa: F811
    uses = "".join(f"  {name}: {{use: '{ZOO / file}'}}\n" for name, file in FILES.items())
    by = "next_token: {weight: 1.0, by: [focal, cal]}, label_smoothing: 0.3, z_loss: 0.001"
    text = MIXED.replace("plugins:\n", f"plugins:\n{uses}").replace("next_token: 1.0", by)
    recipe = tiny(f"speed.recompute={recompute}", text=text)
    one = train(recipe, out=tmp_path / "one", trust_files=True).run
    plain = train(tiny(f"speed.recompute={recompute}", text=MIXED), out=tmp_path / "plain").run
    lines, without = one.read_metrics(), plain.read_metrics()
    assert all(line["terms/label_smoothing"] > 0 for line in lines)
    assert lines[0]["terms/next_token"] != without[0]["terms/next_token"]
    run = trained(2, recipe, tmp_path / "two", trust_files=True)
    assert_near(run, one, rel=5e-6)
    ours, theirs = model_of(run, "only"), model_of(one, "only")
    for name, tensor in ours.items():
        if not name.endswith("qkv.bias"):  # that of keys has no gradient but rounding, which Adam makes large
            assert (tensor - theirs[name]).norm() <= 1e-4 * theirs[name].norm(), name
