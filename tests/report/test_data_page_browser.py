"""The page of samples in a real headless Chromium: messages, requests, themes, widths, keys, and without scripts."""

from __future__ import annotations

import json

import pytest

from lmmkit.recipe import read_text
from lmmkit.report.data_page import data_page
from tests.conftest import DIRECT
from tests.report.test_runs_page import EVIL
from tests.support.browser import BARE, LOW_CONTRAST, SIDEWAYS, TWICE, WIDTHS, OpenPage, opened_chromium

pytestmark = pytest.mark.browser


@pytest.fixture(scope="module")
def chromium():
    yield from opened_chromium()


@pytest.fixture(scope="module")
def page_file(scenes, tmp_path_factory):
    """Returns a page with hostile text, a long word, a bad image, and views that are cut."""
    folder = tmp_path_factory.mktemp("data_page")
    rows = json.loads((scenes / "finetune.json").read_text())[:8]
    for row in rows:
        row["image"] = str(scenes / row["image"]).removeprefix("/")
    rows[1]["conversations"][1]["value"] = EVIL + "\u202e" + "x" * 300
    rows[1]["id"] = EVIL
    rows[2]["image"] = str(folder / "sham.png").removeprefix("/")
    (folder / "sham.png").write_bytes(b"sham")
    (folder / "mix.json").write_text(json.dumps(rows))
    sets = [
        f"data.questions.records={folder / 'mix.json'}", "data.questions.images=/", "data.questions.bad_records=skip",
        "stages.finetune.batch.too_long=truncate",
    ]  # fmt: skip
    recipe = read_text(DIRECT, name="tiny.yaml", overrides=sets, root=scenes)
    (folder / "page.html").write_text(data_page(recipe, source="questions").text)
    return folder / "page.html"


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_it_loads_nothing_and_logs_nothing_at_any_width(chromium, page_file, scheme):
    tab = OpenPage(chromium, page_file, color_scheme=scheme)
    assert tab.page.evaluate(LOW_CONTRAST) == []
    assert tab.page.evaluate(BARE) == 0 and tab.page.evaluate(TWICE) == []
    for width in WIDTHS:
        tab.page.set_viewport_size({"width": width, "height": 900})
        assert tab.page.evaluate(SIDEWAYS) <= 0, width
    assert tab.messages == [] and len(tab.requests) == 1
    tab.context.close()


def test_keys_and_buttons_go_from_sample_to_sample(chromium, page_file):
    tab = OpenPage(chromium, page_file)
    here = lambda: (tab.page.text_content("#here"), tab.page.evaluate("document.activeElement.id"))
    assert here()[0] == "8 samples"
    for expected in (0, 1, 2):
        tab.page.keyboard.press("j")
        assert here() == (f"sample {expected}", f"s{expected}")
    tab.page.keyboard.press("k")
    assert here() == ("sample 1", "s1")
    tab.page.locator("#after").evaluate("button => button.click()")  # a click of playwright scrolls
    assert here() == ("sample 2", "s2")
    for _ in range(9):
        tab.page.keyboard.press("j")
    assert here() == ("sample 7", "s7")
    tab.page.keyboard.press("k")
    assert here() == ("sample 6", "s6") and tab.messages == []
    tab.context.close()


def test_text_is_there_without_scripts_and_hostile_text_is_text(chromium, page_file):
    tab = OpenPage(chromium, page_file, java_script_enabled=False)
    assert tab.page.title() == "Stage finetune · lmmkit data show"
    assert tab.page.locator("section.one").count() == 8 and not tab.page.locator("#after").is_visible()
    words = tab.page.locator("#s1 .view").first.inner_text()
    assert "<script>document.title='x'</script>" in words and "U+202E" in words
    assert (
        tab.page.locator("#s1 u").first.evaluate("e => getComputedStyle(e).textDecorationLine") == "underline"
    )
    assert "image/format" in tab.page.locator("#s2 .warn").inner_text()
    assert tab.page.locator("#s0 svg.tile").first.bounding_box()["width"] > 60
    views = [view.bounding_box()["x"] for view in tab.page.locator("#s0 .view").all()]
    assert len(views) == 2 and views[0] < views[1], "side by side"
    tab.context.close()
