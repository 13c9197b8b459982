"""Samples on the page are those of the pipeline: views, spans, supervised rows, pixels, and what is left out."""

from __future__ import annotations

import base64
import io
import json
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image as Pil

from lmmkit.api.sample import AnyRes
from lmmkit.data.fits.rows import TiledRows
from lmmkit.data.images import read_image
from lmmkit.data.micro_batch.laid_out import LaidOut
from lmmkit.errors import UserError
from lmmkit.plan.prepare import prepare
from lmmkit.recipe import read_text
from lmmkit.report.trained_samples import Place, SampleReader, _weights_text, first_places, source_places
from tests.conftest import DIRECT, PLAIN
from tests.data.test_images import noisy_image


def pixels(uri: str) -> np.ndarray:
    """Returns the pixels of a data URI, [height, width, colour]."""
    return np.asarray(Pil.open(io.BytesIO(base64.b64decode(uri.partition(",")[2]))).convert("RGB"))


def on_pixels(image, spec, fit) -> np.ndarray:
    return read_image(image, spec, fit).permute(1, 2, 0).numpy()


def reader_of(scenes, *sets: str, text: str = DIRECT, stage: str = "finetune") -> SampleReader:
    recipe = read_text(text, name="tiny.yaml", overrides=sets, root=scenes)
    return SampleReader(prepare(recipe, data=recipe.stages[stage].data).pipeline(stage))


@pytest.fixture(scope="module")
def reader(scenes):
    return reader_of(scenes, stage="pretrain")


def test_views_spans_and_labels_are_those_of_the_step(reader):
    """Compares with the batch of the first step, whose samples the page shows first."""
    (batch,) = reader.pipeline.step(0)
    places = list(first_places(reader.pipeline, 0, reader.pipeline.samples))
    found = [reader.read(place) for place in places]
    views = [(view, sample.key) for sample in found for view in sample.views]
    assert [(view.name, key) for view, key in views] == list(batch.views)
    assert {view.name for view, _ in views} == {"main", "image_order", "text_order"}
    trained = Counter(view.name for view, _ in views for _ in range(view.supervised))
    assert trained["main"] == batch.count["next_token"] and trained["text_order"] == batch.count["text_order"]
    permutations = [value for view, _ in views for key, value in view.labels if key == "permutation"]
    assert permutations == [str(int(n)) for n in batch.labels["image_order/permutation"]]
    for view, _ in views:
        assert view.rows == sum(span.rows for span in view.spans) and not view.cut
        assert view.supervised == sum(span.rows for span in view.spans if span.use == "train")
    kinds = {(view.name, span.kind) for view, _ in views for span in view.spans}
    assert {("main", "image"), ("main", "response"), ("image_order", "learned")} <= kinds


def test_images_are_shown_as_the_encoder_gets_them(reader):
    for place in first_places(reader.pipeline, 0, 3):
        sample = reader.pipeline.sources[place.source][place.record]
        expected = on_pixels(sample.images[0], reader.pipeline.packer.image, sample.image_fit)
        shown = {
            view.name: span.image for view in reader.read(place).views for span in view.spans if span.image
        }
        assert np.array_equal(pixels(shown["main"].whole), expected)
        assert shown["main"].edit == "" and shown["image_order"].edit == "Shuffle"
        shuffled = pixels(shown["image_order"].whole)
        assert np.array_equal(np.sort(shuffled, axis=None), np.sort(expected, axis=None))
        assert not np.array_equal(shuffled, expected)
        assert shown["main"].number == shown["image_order"].number == 1


def test_each_tile_of_an_image_is_shown(scenes, tmp_path):
    rows = json.loads((scenes / "finetune.json").read_text())[:3]
    for row, size in zip(rows, [(90, 20), (20, 90), (60, 64)], strict=True):
        row["image"] = f"{size[0]}.png"
        noisy_image(*size).save(tmp_path / row["image"])
    (tmp_path / "tiled.json").write_text(json.dumps(rows))
    fit = AnyRes(grids=((1, 2), (2, 1), (2, 2)))
    section = "{kind: anyres, grids: [[1, 2], [2, 1], [2, 2]]}"
    sets = [f"data.questions.image_fit={section}", f"model.chat.image_fit={section}"]
    sets += [f"data.questions.records={tmp_path / 'tiled.json'}", f"data.questions.images={tmp_path}"]
    reader = reader_of(scenes, *sets, text=PLAIN)
    spec, seen = reader.pipeline.packer.image, set()
    for place in source_places(reader.pipeline, "questions", 0, 3):
        image = reader.pipeline.sources["questions"][place.record].images[0]
        tiling = TiledRows(fit, spec).tiling(image)
        (span,) = [span for span in reader.read(place).views[0].spans if span.image]
        inputs = read_image(image, spec, fit).permute(0, 2, 3, 1).numpy()
        assert span.image is not None and span.image.grid == tiling.grid
        assert span.rows == tiling.rows(spec.grid)
        assert np.array_equal(pixels(span.image.whole), inputs[0])
        lines, columns = tiling.grid
        assert [(t.line, t.column) for t in span.image.tiles] == [
            (i, j) for i in range(lines) for j in range(columns)
        ]
        for tile, expected in zip(span.image.tiles, inputs[1:], strict=True):
            assert np.array_equal(pixels(tile.uri), expected)
        seen.add(tiling.grid)
    assert seen == {(1, 2), (2, 1), (2, 2)}


@pytest.mark.parametrize(("supervision", "use"), [("train", "train"), ("read", "read"), ("none", "")])
def test_supervised_spans_have_the_use_of_their_view(scenes, supervision, use):
    reader = reader_of(scenes, text=PLAIN)
    sample = reader.pipeline.sources["questions"][0]
    (member,) = reader.pipeline.views.fitting(sample, 0, Counter())
    images, _ = reader._images([member])
    shown = reader._view(LaidOut(replace(member.view, supervision=supervision), member.layout), images)
    assert {span.use for span in shown.spans if span.kind == "response"} == {use}
    assert not any(span.use for span in shown.spans if span.kind != "response")
    assert shown.supervised == (sum(s.n for s in member.layout if s.supervised) if use else 0)


def test_what_is_cut_is_counted(scenes):
    reader = reader_of(scenes, "model.text.context=60", "stages.finetune.batch.too_long=truncate", text=PLAIN)
    whole = reader_of(scenes, text=PLAIN)
    place = Place("questions", 0, 0, 0)
    (cut,), (full,) = reader.read(place).views, whole.read(place).views
    lost = full.supervised - cut.supervised
    assert cut.rows == 60 and str(full.rows) in cut.cut and f"{full.rows - 60} of" in cut.cut
    assert f"{lost} of them supervised" in cut.cut
    assert not reader.read(place).dropped and not full.cut


def test_a_view_that_is_left_out_is_named(scenes):
    sets = ("model.text.context=40", "stages.finetune.batch.too_long=drop")
    shown = reader_of(scenes, *sets, text=PLAIN).read(Place("questions", 0, 0, 0))
    assert shown.views == [] and shown.dropped == "Views longer than the context, left out: 1."
    shown = reader_of(scenes, "model.text.context=40", text=PLAIN).read(Place("questions", 0, 0, 0))
    assert shown.problem is not None and shown.problem.code == "data/too-long"
    assert shown.then == "training stops here"


@pytest.mark.parametrize(
    ("policy", "then"),
    [("skip", "the next good record of the source takes its place"), ("error", "training stops here")],
)
def test_a_bad_image_is_shown_with_its_reason(scenes, tmp_path, policy, then):
    rows = json.loads((scenes / "finetune.json").read_text())[:3]
    (tmp_path / "sham.png").write_bytes(b"no image")
    for row in rows:
        row["image"] = "sham.png"
    (tmp_path / "bad.json").write_text(json.dumps(rows))
    sets = [f"data.questions.records={tmp_path / 'bad.json'}", f"data.questions.images={tmp_path}"]
    reader = reader_of(scenes, *sets, f"data.questions.bad_records={policy}", text=PLAIN)
    shown = reader.read(Place("questions", 0, 1, 0))
    assert shown.problem is not None and shown.problem.code == "image/format" and shown.then == then
    assert shown.key.startswith("questions:") and not shown.views


def test_a_file_that_changed_ends_the_command(scenes):
    reader = reader_of(scenes, text=PLAIN)
    reader.pipeline.sources["questions"].indexed.index.meta["stat"][0] = [0, 0]
    with pytest.raises(UserError, match="records/changed"):
        reader.read(Place("questions", 0, 0, 0))


def test_places_are_those_of_the_order_or_of_the_file(reader):
    order = [reader.pipeline.order.at(k) for k in range(2, 7)]
    found = list(first_places(reader.pipeline, 2, 5))
    assert [place[:3] for place in found] == order and [place.step for place in found] == [0, 0, 1, 1, 1]
    assert len(list(first_places(reader.pipeline, 20, 50))) == reader.pipeline.total - 20
    assert [place.record for place in source_places(reader.pipeline, "captions", 118, 9)] == [118, 119]


def test_weights_of_a_span_in_words():
    assert _weights_text(()) == _weights_text([1.0, 1.0]) == ""
    assert _weights_text([0.5]) == "weight 0.5" and _weights_text([2.0, 1.0, 0.5]) == "weights 0.5 to 2"
