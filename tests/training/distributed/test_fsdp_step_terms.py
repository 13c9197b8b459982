"""Terms over the step on two ranks: the figures and weights of one process."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from lmmkit import build
from lmmkit.errors import UserError
from lmmkit.plan.prepare import prepare
from lmmkit.training.run import train
from tests.support import contrast_plugin
from tests.training.distributed.test_fsdp import MIXED, assert_near, mixed, model_of, trained  # noqa: F401
from tests.training.test_resume import SHORT, of_micro_batches


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


@pytest.mark.slow
def test_a_term_of_micro_batches_is_the_mean_over_those_of_two_ranks(tiny, tmp_path):
    """Computes the micro-batches of both ranks in one process, which then may not resume the run."""
    recipe = tiny(*SHORT, "speed.tokens=150", text=of_micro_batches())
    run = trained(2, recipe, tmp_path / "two", trust_files=True)
    prepared = prepare(recipe, trust_files=True)
    made = build.build_objective(
        prepared.recipe, prepared.instances.components, prepared.dims, torch.device("cpu")
    )
    build.start(made, run.model("pretrain"))
    build.set_stage(made, prepared.plans["finetune"], recipe.stages["finetune"], seed=recipe.seed)
    pipeline, (term,) = prepared.pipeline("finetune"), made.terms
    batches = [batch for rank in (0, 1) for batch in replace(pipeline, rank=rank, world=2).step(0)]
    values = [float(term.value(made(batch).ctxs["apart"]).detach()) for batch in batches]
    assert len(values) > 2 and run.read_metrics()[-1]["terms/apart"] == pytest.approx(
        sum(values) / len(values), rel=1e-5
    )
    with pytest.raises(UserError, match="resume/other-ranks"):
        train(recipe, out=run.path, resume=True, trust_files=True)
