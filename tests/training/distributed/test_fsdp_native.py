"""Images that keep their shape beside images of one size and records without, on two ranks: the figures of one."""

from __future__ import annotations

from dataclasses import replace

import pytest

from lmmkit.plan.prepare import prepare
from lmmkit.training.run import train
from tests.training.distributed.test_fsdp import MIXED, mixed, model_of, trained  # noqa: F401
from tests.training.test_run import figures
from tests.training.test_run_native import FIT, POOL, RESAMPLER, TIMM
from tests.training.test_run_tiles import write_shapes

SHAPES = f"  shapes: {{kind: llava, records: shapes/records.json, images: shapes, template: vicuna_v1, image_fit: {FIT}}}\n"
TEXT = MIXED.replace("  mixed:", f"{SHAPES}  mixed:", 1).replace("{mixed: 1.0}", "{mixed: 1.0, shapes: 1.0}")
TEXT = (
    TEXT.replace(", guided_loss: 0.5", "")
    .replace("  guided_loss:    {}\n", "")
    .replace("context: 256", "context: 400")
)
NOT_SAME = {"tokens", "val/seconds"}  # rows are fewer where prompts meet


def kinds(batch) -> frozenset[str]:
    """Returns the kinds of images of a micro-batch."""
    native = {"native"} if batch.patches is not None else set()
    return frozenset(native | ({"sized"} if len(batch.pixels_ICXY) else set()))


@pytest.mark.slow
@pytest.mark.parametrize(
    "change",
    ["", TIMM % ", dynamic_img_size: true", POOL, RESAMPLER],
    ids=["own", "timm", "average_pool", "resampler"],
)
def test_images_of_unlike_sizes_on_two_ranks_give_one_process_s_figures(
    mixed, tiny, scenes, tmp_path, change  # noqa: F811 (writes the data)
):  # fmt: skip
    (scenes / "shapes").mkdir()
    write_shapes(scenes / "shapes")
    changes = [change] * bool(change)
    changes += ["stages.only.validate={every: 5, data: shapes, samples: 5}", "output.images_every=10"]
    recipe = tiny(*changes, "stages.only.batch.samples=4", "speed.tokens=400", text=TEXT)
    pipeline = prepare(recipe).pipeline("only")
    shares = [[replace(pipeline, rank=r, world=2).step(i) for r in (0, 1)] for i in range(10)]
    met = {frozenset(map(kinds, pair)) for step in shares for pair in zip(*step, strict=False)}
    none, native, both = frozenset[str](), frozenset({"native"}), frozenset({"native", "sized"})
    assert frozenset({none, native}) in met, (
        "a rank without images beside one with images that keep their shape"
    )
    assert any(both in pair and len(pair) == 2 for pair in met), (
        "a rank with both beside one with fewer kinds"
    )
    one = train(recipe, out=tmp_path / "one").run
    run = trained(2, recipe, tmp_path / "two")
    kept = [[{k: line[k] for k in line.keys() - NOT_SAME} for line in figures(each)] for each in (run, one)]
    assert len(kept[0]) == 12 and sum("val/loss" in line for line in kept[0]) == 2
    for mine, theirs in zip(*kept, strict=True):
        assert mine.keys() == theirs.keys()
        for key, value in theirs.items():
            want = pytest.approx(value, rel=5e-6, abs=1e-12) if isinstance(value, float) else value
            assert mine[key] == want, (mine["step"], key)
    ours, theirs = model_of(run, "only"), model_of(one, "only")
    for name, tensor in ours.items():
        if not name.endswith("qkv.bias"):  # that of keys has no gradient but rounding, which Adam makes large
            assert (tensor - theirs[name]).norm() <= 1e-4 * theirs[name].norm(), name
