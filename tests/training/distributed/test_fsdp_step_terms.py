"""Terms over the step on two ranks: the figures and weights of one process."""

from __future__ import annotations

from pathlib import Path

import pytest

from lmmkit.training.run import train
from tests.support import contrast_plugin
from tests.training.distributed.test_fsdp import MIXED, assert_near, mixed, model_of, trained  # noqa: F401


@pytest.mark.slow
@pytest.mark.parametrize("more", [(), ("speed.recompute=all", "speed.tokens=400")], ids=["cut", "recomputed"])
def test_two_ranks_give_one_process_s_figures(mixed, tiny, tmp_path, more):  # noqa: F811
    plugin = f"plugins:\n  contrast: {{use: {Path(contrast_plugin.__file__)}}}\n"
    text = MIXED.replace("plugins:\n", plugin).replace("guided_loss: 0.5", "guided_loss: 0.5, contrast: 0.1")
    recipe = tiny(*more, text=text)
    one = train(recipe, out=tmp_path / "one", trust_files=True).run
    assert all(line["terms/contrast"] > 0 for line in one.read_metrics())
    run = trained(2, recipe, tmp_path / "two", trust_files=True)
    assert_near(run, one, rel=5e-6)
    ours, theirs = model_of(run, "only"), model_of(one, "only")
    assert "plugins.contrast.log" in ours
    for name, tensor in ours.items():
        if not name.endswith(
            "qkv.bias"
        ):  # a bias of keys has no gradient but rounding, which Adam makes large
            assert (tensor - theirs[name]).norm() <= 1e-4 * theirs[name].norm(), name
