"""The published rows: complete, and beside one's own figures."""

from __future__ import annotations

import pytest

from lmmkit.evaluate.answers.published import CAVEATS, COLUMNS, ROWS, caveats_of, published, published_table
from lmmkit.evaluate.task import Figure


def test_every_row_has_a_cell_for_every_benchmark():
    assert len(COLUMNS) == 12 and set(CAVEATS) == set(COLUMNS)
    for row in ROWS.values():
        cells = row.split()
        assert len(cells) == 12
        for columns, cell in zip(COLUMNS.values(), cells, strict=True):
            assert cell == "-" or len(cell.split("/")) == len(columns)


def test_the_published_rows_weigh_their_questions_as_the_caveat_says():
    """Weighs the images and videos of SEED: 5,009 questions are on videos, or 3,757."""
    for model, (whole, image, video) in published("seed").items():
        videos = 5009 if model.startswith("LLaVA-1.5") else 3757
        assert (14233 * image + videos * video) / (14233 + videos) == pytest.approx(whole, abs=0.16), model


def test_own_figures_come_below_the_published_ones():
    own = {
        "f1": Figure(value=0.8, n=9),
        "f1/random": Figure(value=0.9, n=3),
        "f1/popular": Figure(value=0.81, n=3),
    }
    lines = published_table("pope", own, 100, "mine")
    assert lines[0] == ("model", "random", "popular", "adversarial") and lines[1][1:] == (
        "87.3",
        "86.1",
        "84.2",
    )
    assert lines[-1] == ("mine", "90.0", "81.0", "-")
    assert published_table("pope", {"f1": own["f1"], "f1/popular": own["f1"]}, 100, "m")[-1] == (
        "m",
        "-",
        "80.0",
        "-",
    )
    of_images = {"accuracy": Figure(value=0.7, n=9), "accuracy/image": Figure(value=0.7, n=9)}
    assert published_table("seed", of_images, 100, "m")[-1] == ("m", "-", "70.0", "-")
    whole = of_images | {"accuracy/video": Figure(value=0.4, n=3)}
    assert published_table("seed", whole, 100, "m")[-1] == ("m", "70.0", "70.0", "40.0")
    assert published_table("mmbench", {"circular": Figure(value=0.6, n=9)}, 100, "m")[-1] == ("m", "60.0")
    assert published_table("gqa", {"accuracy": Figure(value=0.621, n=9)}, 100, "m")[-1] == ("m", "62.1")
    assert published_table("gqa", {}, 100, "m")[-1] == ("m", "-")
    assert len(published_table("mmbench", {}, 100, "m")) == 2 + 2, "rows without a figure are left out"


def test_caveats_come_with_the_rows():
    assert caveats_of("pope", ("x", CAVEATS["pope"][0])) == [*CAVEATS["pope"], "x"]
    assert any("17,990" in text for text in caveats_of("seed")) and caveats_of("toy", ("y",)) == ["y"]
