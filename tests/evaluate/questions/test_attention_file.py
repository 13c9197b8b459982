"""The attention of the deciding row to the box of a record."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from lmmkit.api.sample import Image, Sample, Turn
from lmmkit.evaluate.questions import attention_file
from lmmkit.evaluate.questions.attention_file import attention_figure, covered_by, is_box
from lmmkit.runs.files import read_jsonl
from tests.conftest import PLAIN
from tests.support.random_chat_model import random_chat_model


@pytest.mark.parametrize("grid", [(1, 1), (3, 3), (4, 6)])
def test_patches_count_by_the_share_that_the_box_covers(grid):
    rng = np.random.default_rng(0)
    for _ in range(20):
        (left, right), (top, bottom) = np.sort(rng.random((2, 2)), axis=1)
        # Slow twin: points on a fine raster.
        y, x = (np.arange(240) + 0.5)[:, None] / 240, (np.arange(240) + 0.5)[None] / 240
        inside = ((left <= x) & (x < right) & (top <= y) & (y < bottom)).astype(float)
        shares = inside.reshape(grid[0], 240 // grid[0], grid[1], 240 // grid[1]).mean((1, 3))
        found = covered_by((left, top, right, bottom), grid)
        assert np.abs(found.numpy() - shares).max() < 0.02 * max(grid)
        assert float(found.sum()) == pytest.approx(
            (right - left) * (bottom - top) * grid[0] * grid[1], rel=1e-5
        )


@pytest.mark.parametrize("box", [None, "0 0 1 1", (0, 0, 1), (0.5, 0, 0.5, 1), (0, 0.6, 1, 0.4), (0, 0, 1.2, 1), (-0.1, 0, 1, 1), ("a", "b", "c", "d")])  # fmt: skip
def test_other_values_are_no_box(box):
    assert not is_box(box)
    assert is_box((0, 0, 1, 1)) and is_box((0.25, 0.0, 0.5, 0.75))


def test_lines_and_figures_of_records_with_a_box(tiny, scenes, tmp_path):
    model = random_chat_model(tiny(text=PLAIN))
    images = sorted((scenes / "images" / "heldout").iterdir())[:3]
    asked = [
        Sample(
            key=path.stem, turns=(Turn("user", "What shape is red?", images=1),), images=(Image(str(path)),)
        )
        for path in images
    ]
    whole = [replace(sample, meta={"box": (0.0, 0.0, 1.0, 1.0)}) for sample in asked[:2]]
    figures = attention_figure(model, [(s, "a square") for s in (*whole, asked[2])], tmp_path)
    lines = read_jsonl(tmp_path / attention_file.ATTENTION)
    assert [("object" in line) for line in lines] == [True, True, False]
    for line in lines[:2]:  # the box is all of the image
        assert line["object"] == pytest.approx(line["deciding_mass"], rel=1e-5)
        assert line["object_even"] == pytest.approx(line["deciding_even"], rel=1e-5)
    assert figures["object_attention"].n == 2 and figures["deciding_attention"].n == 3
    mean = sum(line["object"] for line in lines[:2]) / 2
    assert figures["object_attention"].value == pytest.approx(mean)

    half = [replace(s, meta={"box": box}) for s in asked[:1] for box in ((0, 0, 0.5, 1), (0.5, 0, 1, 1))]
    shares = [attention_file._line(model, s, "a square") for s in half]
    assert shares[0]["object"] + shares[1]["object"] == pytest.approx(lines[0]["deciding_mass"], rel=1e-5)
    assert shares[0]["object"] != pytest.approx(shares[1]["object"], rel=1e-6)
    assert shares[0]["object_even"] == pytest.approx(lines[0]["deciding_even"] / 2)


def test_the_answer_s_first_token_does_not_change_the_row_that_decides_on_it(tiny, scenes):
    model = random_chat_model(tiny(text=PLAIN))
    path = next((scenes / "images" / "heldout").iterdir())
    sample = Sample(
        key="s", turns=(Turn("user", "What shape is red?", images=1),), images=(Image(str(path)),)
    )
    one, two = (attention_file._line(model, sample, text) for text in ("square", "there is a red cross"))
    assert one["deciding_mass"] == pytest.approx(two["deciding_mass"], rel=1e-5)
    assert one["mass"] != pytest.approx(two["mass"], rel=1e-5)
    assert torch.tensor(one["grid"]).tolist() == list(model.packer.image.grid)
