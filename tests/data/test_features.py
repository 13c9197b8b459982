"""Features kept on disk: the same losses, whole files or none, and a bound."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from PIL import Image as Pil

from lmmkit.data.features import FeatureCache, digest
from lmmkit.training.run import train


@pytest.fixture
def picture(tmp_path):
    Pil.new("RGB", (8, 8), "red").save(tmp_path / "a.png")
    return str(tmp_path / "a.png")


def cache(tmp_path, limit=2**20, mark="encoder", shape=(9, 16)):
    return FeatureCache(tmp_path / "kept", mark, limit, shape)


def test_what_is_put_comes_back_in_another_process(tmp_path, picture):
    x_ND = torch.randn(9, 16).bfloat16()
    kept = cache(tmp_path)
    name = kept.name(picture, "pad")
    assert kept.get(name) is None and kept.put(name, x_ND)
    assert torch.equal(cache(tmp_path).get(name), x_ND)


def test_a_name_is_of_encoder_shape_and_content(tmp_path, picture):
    kept = cache(tmp_path)
    names = {
        kept.name(picture, "pad"),
        kept.name(picture, "crop"),
        cache(tmp_path, mark="other").name(picture, "pad"),
    }
    Pil.new("RGB", (8, 8), "blue").save(picture)
    assert len(names | {kept.name(picture, "pad")}) == 4
    a, b = {"w": torch.zeros(3)}, {"w": torch.ones(3)}
    assert digest(a) != digest(b) and digest(a) == digest({"w": torch.zeros(3)})


@pytest.mark.parametrize(
    "damage", [lambda b: b[:-3], lambda b: b[:-1] + bytes([b[-1] ^ 1]), lambda b: b"", lambda b: b"{}" * 9]
)
def test_a_damaged_file_counts_as_absent_and_is_written_anew(tmp_path, picture, damage):
    kept, x_ND = cache(tmp_path), torch.randn(9, 16)
    name = kept.name(picture, "pad")
    kept.put(name, x_ND)
    (file,) = (tmp_path / "kept").rglob("*.safetensors")
    file.write_bytes(damage(file.read_bytes()))
    assert kept.get(name) is None and kept.put(name, x_ND) and torch.equal(kept.get(name), x_ND)


def test_the_bound_holds_across_runs(tmp_path):
    x_ND = torch.zeros(64, 16)  # 4 KiB
    assert [cache(tmp_path, limit=10_000).put(f"{i:02x}", x_ND) for i in range(4)] == [
        True,
        True,
        False,
        False,
    ]
    assert sum(p.stat().st_size for p in (tmp_path / "kept").rglob("*.*")) <= 10_000


FROZEN = ("stages.pretrain.train={connector: {}, text: {}, plugins: {}}", "stages.pretrain.length.steps=40")


@pytest.mark.parametrize("workers", [0, 2])
def test_a_run_with_kept_features_has_the_losses_of_one_without(tiny, tmp_path, workers):
    kept = f"speed.features={{folder: {tmp_path / 'kept'}, gib: 1.0}}"
    recipes = {
        "plain": tiny(*FROZEN), "first": tiny(*FROZEN, kept, f"speed.workers={workers}"), "second": tiny(*FROZEN, kept),
    }  # fmt: skip
    losses = {
        name: [line["loss"] for line in train(recipe, out=tmp_path / name).run.read_metrics()]
        for name, recipe in recipes.items()
    }
    assert len(list((tmp_path / "kept").rglob("*.safetensors"))) > 50
    assert losses["first"] == pytest.approx(losses["plain"], rel=1e-5)
    assert losses["second"] == pytest.approx(losses["plain"], rel=1e-5)


@pytest.mark.parametrize("change", ["activation=gelu", "heads=4", "norm_eps=1e-6", "resample=bilinear"])
def test_encoders_of_the_same_weights_are_kept_apart(change, tiny, tmp_path):
    from lmmkit import assemble
    from lmmkit.plan.prepare import prepare
    from lmmkit.training.reading import feature_cache

    marks, weights = set(), set()
    for more in ((), (f"model.vision.{change}",)):
        prepared = prepare(tiny(*FROZEN, f"speed.features={{folder: {tmp_path}, gib: 1.0}}", *more))
        objective = assemble.build(
            prepared.recipe, prepared.parts.components, prepared.dims, torch.device("cpu")
        )
        marks.add(feature_cache(prepared, objective, "pretrain").mark)
        weights.add(digest(objective.lmm.vision.state_dict()))
    assert (len(weights), len(marks)) == (1, 2)


def test_known_pictures_are_not_read(tiny, tmp_path):
    from lmmkit.plan.prepare import prepare

    pipeline = prepare(tiny(*FROZEN)).pipeline("pretrain")
    kept = cache(tmp_path, shape=(pipeline.packer.image_rows, 32))
    packer = replace(pipeline.packer, features=kept)
    (batch,) = replace(pipeline, packer=packer).step(0)
    rows = packer.image_rows
    assert batch.known_JND is None and len(batch.unknown) == 4 and len(batch.pixels_ICXY) == 8
    told = {name: torch.full((rows, 32), float(i)) for i, (_, name) in enumerate(batch.unknown)}
    for name, x_ND in told.items():
        kept.put(name, x_ND)
    (again,) = replace(pipeline, packer=packer).step(0)
    assert len(again.pixels_ICXY) == 4 and again.unknown == () and len(again.known_JND) == 4
    (fill,), (before,) = ([f for f in b.fills if f.source == "vision"] for b in (again, batch))
    assert torch.equal(fill.row_N, before.row_N)
    plain = dict(batch.unknown)
    for row, item in zip(fill.row_N.tolist(), fill.item_N.tolist(), strict=True):
        was = int(before.item_N[before.row_N == row]) // rows
        if was in plain:
            assert torch.equal(again.known_JND[item // rows - 4], told[plain[was]])
        else:
            assert torch.equal(again.pixels_ICXY[item // rows], batch.pixels_ICXY[was])
