"""The next-token loss of every source of a mixed stage, beside the whole."""

from __future__ import annotations

from collections import Counter

import pytest
import torch

from lmmkit import build
from lmmkit.data.micro_batch.packed_images import read_images
from lmmkit.plan.prepare import prepare
from lmmkit.training.run import train

MIXED = (
    "stages.finetune.data={questions: 2.0, captions: 1.0}", "stages.pretrain.length.steps=1",
    "stages.finetune.length.steps=4", "stages.finetune.batch.samples=5", "output.images_every=0",
)  # fmt: skip


def test_losses_by_source_add_up_to_the_whole(tiny, tmp_path):
    recipe = tiny(*MIXED, "speed.tokens=300")
    lines = train(recipe, out=tmp_path / "run").run.read_metrics()
    assert not any(key.startswith("loss/") for key in lines[0]), "a stage of one source has nothing to tell"
    pipeline = prepare(recipe).pipeline("finetune")
    for line in lines[1:]:
        step = pipeline.step(line["step"] - 2)
        n = {s: sum(batch.count[f"loss/{s}"] for batch in step) for s in ("questions", "captions")}
        assert sum(n.values()) == sum(batch.count["next_token"] for batch in step)
        mean = sum(n[s] * (line[f"loss/{s}"] or 0.0) for s in n) / sum(n.values())
        assert mean == pytest.approx(line["terms/next_token"], rel=1e-5)


def test_a_source_s_loss_is_that_of_its_samples_alone(tiny):
    recipe = tiny(*MIXED)
    prepared = prepare(recipe)
    objective = build.build_objective(
        prepared.recipe, prepared.instances.components, prepared.dims, torch.device("cpu")
    )
    objective.terms = prepared.plans["finetune"].terms
    pipeline = prepared.pipeline("finetune")
    (batch,) = pipeline.step(1)
    mixed = objective(batch).by_source
    by_source: dict[str, list] = {}
    for k in pipeline_positions(pipeline, 1):
        source, epoch, row = pipeline.order.at(k)
        members = pipeline.views.fitting(pipeline.sources[source][row], epoch, Counter())
        by_source.setdefault(source, []).append(pipeline.packer.sized(members, source))
    assert set(by_source) == {"questions", "captions"}
    for source, samples in by_source.items():
        images = read_images(samples, pipeline.reader)
        alone = objective(pipeline.packer.pack(samples, images)[0])
        assert float(mixed[f"loss/{source}"]) == pytest.approx(
            float(alone.sums["next_token"].detach()), rel=1e-5
        )


def pipeline_positions(pipeline, index):
    return range(index * pipeline.samples, (index + 1) * pipeline.samples)


def test_a_source_that_no_row_of_a_step_is_of_has_no_loss_and_is_no_idle_term(tiny, tmp_path):
    recipe = tiny(
        *MIXED[1:2], "stages.finetune.data={questions: 1.0, captions: 0.001}", "stages.finetune.length.steps=3",
        "output.images_every=0",
    )  # fmt: skip
    lines = train(recipe, out=tmp_path / "run").run.read_metrics()
    assert lines[-1]["loss/captions"] is None and lines[-1]["loss/questions"] > 0
