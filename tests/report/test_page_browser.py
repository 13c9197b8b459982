"""The page in a real headless Chromium: filters, keys, themes, widths, messages, requests, contrast, time to open."""

from __future__ import annotations

import base64
import json
import shutil
from pathlib import Path

import pytest
from PIL import Image

from lmmkit.report.page import Page
from lmmkit.report.runs_page import runs_page
from lmmkit.report.write_page import write_page
from tests.report.test_runs_page import EVIL
from tests.support.ablation_file import ablation, write_ablation
from tests.support.browser import BARE, LOW_CONTRAST, SIDEWAYS, TWICE, WIDTHS, OpenPage, opened_chromium
from tests.support.run_folders import change_answer, make_pair

pytestmark = pytest.mark.browser


@pytest.fixture(scope="module")
def pair(tmp_path_factory) -> list[Path]:
    return make_pair(tmp_path_factory.mktemp("pair"))


@pytest.fixture(scope="module")
def page_file(pair, tmp_path_factory) -> Path:
    return write_page(pair, tmp_path_factory.mktemp("page") / "report.html").path


@pytest.fixture(scope="module")
def chromium():
    yield from opened_chromium()


class Tab(OpenPage):
    """The page of runs in the browser."""

    def count(self) -> int:
        return int((self.page.text_content("#f-count") or "").split(" of ")[0].replace(",", ""))

    def question(self) -> str | None:
        return self.page.text_content("#detail h3")


@pytest.fixture
def tab(chromium, page_file):
    made = Tab(chromium, page_file)
    yield made
    assert made.messages == [] and len(made.requests) == 1, (
        "it loads nothing but itself, and nothing goes wrong"
    )
    made.context.close()


@pytest.fixture(scope="module")
def answers(pair) -> list[dict]:
    """Returns for each run the lines of its answers by condition and id."""
    files = [run / "answers" / "finetune" / "answers" / "answers.jsonl" for run in pair]
    lines = [[json.loads(x) for x in file.read_text().splitlines()] for file in files]
    return [{(line["condition"], line["id"]): line for line in each} for each in lines]


def scores(answers, run: int, condition: str = "own") -> list[bool]:
    return [line["score"] == 1.0 for (c, _), line in answers[run].items() if c == condition]


def test_it_opens_in_less_than_two_seconds(tab):
    assert tab.page.evaluate("performance.timing.loadEventEnd - performance.timing.navigationStart") < 2000


def test_each_filter_counts_what_the_answers_count(tab, answers):
    a, b = scores(answers, 0), scores(answers, 1)
    raw = [[line["raw"] for (c, _), line in each.items() if c == "own"] for each in answers]
    want = {
        "": len(a), "wrong-0": sum(not x for x in a), "wrong-1": sum(not x for x in b),
        "differ": sum(x != y for x, y in zip(*raw, strict=True)),
        "only-0": sum(x and not y for x, y in zip(a, b, strict=True)), "only-1": sum(y and not x for x, y in zip(a, b, strict=True)),
        "both-right": sum(x and y for x, y in zip(a, b, strict=True)), "both-wrong": sum(not x and not y for x, y in zip(a, b, strict=True)),
        "blank-0": sum(scores(answers, 0, "blank")), "swapped-1": sum(scores(answers, 1, "swapped")),
    }  # fmt: skip
    found = {}
    for value in want:
        tab.page.select_option("#f-outcome", value)
        found[value] = tab.count()
    assert found == want
    cells = [int(text) for text in tab.page.locator(".agree b").all_text_contents()]
    assert cells == [want["both-right"], want["only-0"], want["only-1"], want["both-wrong"]]


def test_types_words_and_numbers_filter(tab, answers):
    tab.page.select_option("#f-type", "count")
    tab.page.fill("#f-text", "ONE scene")

    def fits(id):
        line = answers[0]["own", id]
        texts = [
            line["question"],
            " | ".join(line["gold"]),
            id,
            *(each[c, id]["raw"] for each in answers for c in ("own", "blank", "swapped")),
        ]
        return line["groups"]["type"] == "count" and all(
            word in " ".join(texts).lower() for word in ("one", "scene")
        )

    assert tab.count() == sum(fits(id) for c, id in answers[0] if c == "own") > 0
    tab.page.fill("#f-text", "zzz")
    assert "No question" in (tab.page.text_content("#list") or "") and tab.page.text_content("#detail") == ""
    tab.page.click("[data-filter-type=shape]")
    assert tab.count() == 40 and tab.page.input_value("#f-type") == "shape"
    tab.page.click("[data-filter-outcome=only-1]")
    assert tab.count() == sum(
        y and not x for x, y in zip(scores(answers, 0), scores(answers, 1), strict=True)
    )
    tab.page.click("#f-reset")
    assert tab.count() == 120


def test_keys_move_filter_and_show(tab, answers):
    questions = [line["question"] for (c, _), line in answers[0].items() if c == "own"]
    keys = tab.page.keyboard
    for _ in range(70):
        keys.press("j")
    keys.press("k")
    assert tab.question() == questions[69], "past the rows that were drawn first"
    keys.press("/")
    assert tab.page.evaluate("document.activeElement.id") == "f-text"
    keys.type("jkax")
    assert tab.page.input_value("#f-text") == "jkax", "letters in a field are letters"
    tab.page.fill("#f-text", "")
    keys.press("Escape")
    assert tab.page.evaluate("document.activeElement.tagName") == "BODY"
    tab.page.select_option("#f-outcome", "wrong-0")
    tab.page.evaluate("document.activeElement.blur()")
    keys.press("x")
    assert tab.count() == 120
    tab.page.focus("#list")
    keys.press("Home")
    modes = []
    for _ in range(3):
        modes.append((tab.page.get_attribute(".maps", "class") or "").split()[-1])
        keys.press("a")
    assert modes == ["heat", "light", "off"] and tab.question() == questions[0]
    keys.press("ArrowDown")
    keys.press("ArrowDown")
    keys.press("ArrowUp")
    assert tab.question() == questions[1]
    keys.press("End")
    assert tab.question() == questions[-1]
    keys.press("h")
    assert tab.page.locator("#keys").is_visible()
    keys.press("j")
    keys.press("Escape")
    assert not tab.page.locator("#keys").is_visible() and tab.question() == questions[-1]


def test_an_address_opens_its_question_under_its_filter(chromium, page_file, answers):
    a, b = scores(answers, 0), scores(answers, 1)
    lines = [line for (c, _), line in answers[0].items() if c == "own"]
    line = next(
        x for x, p, q in zip(lines, a, b, strict=True) if x["groups"]["type"] == "shape" and q and not p
    )
    address = f"#samples?outcome=only-1&type=shape&at={line['id']}"
    tab = Tab(chromium, page_file, address=address)
    assert tab.question() == line["question"]
    assert (tab.page.input_value("#f-outcome"), tab.page.input_value("#f-type")) == ("only-1", "shape")
    tab.page.keyboard.press("j")
    kept = tab.page.evaluate("location.hash")
    assert "outcome=only-1" in kept and line["id"] not in kept.replace("%2F", "/").replace("%3A", ":")
    tab.context.close()
    tab = Tab(chromium, page_file, address="#samples?outcome=none&at=nothing")
    assert tab.count() == 120 and tab.messages == []
    tab.context.close()


def test_charts_tell_the_figures_of_metrics_jsonl(tab, pair):
    last = json.loads((pair[0] / "metrics.jsonl").read_text().splitlines()[-1])
    tab.page.evaluate(
        "const s = document.querySelector('#smooth'); s.value = 0; s.dispatchEvent(new Event('input'))"
    )
    panel = tab.page.locator("#panels figure", has=tab.page.get_by_text("next_token", exact=True)).first
    assert panel.locator(".read b").first.text_content() == f"{last['terms/next_token']:.3f}"
    label = panel.locator("svg.chart").get_attribute("aria-label") or ""
    assert f"plain {last['terms/next_token']:.3f}" in label and "chance 6.500" in label
    panel.locator("svg.chart").focus()
    tab.page.keyboard.press("ArrowLeft")
    first = tab.page.text_content("#where") or ""
    tab.page.keyboard.press("Shift+ArrowLeft")
    assert first.startswith("at step ") and tab.page.text_content("#where") not in ("", first)
    tab.page.keyboard.press("Escape")
    assert tab.page.text_content("#where") == ""
    for along in ("minutes", "tokens", "step"):
        tab.page.select_option("#along", along)
    tab.page.uncheck("#log")
    assert (
        tab.page.locator("#panels path.mean").count() > 6 and tab.page.locator("#panels .flag").count() == 2
    )


def test_the_theme_follows_the_system_and_a_button(chromium, page_file):
    grounds = []
    for scheme in ("light", "dark"):
        tab = Tab(chromium, page_file, color_scheme=scheme)
        for _ in range(2):
            grounds.append(tab.page.evaluate("getComputedStyle(document.body).backgroundColor"))
            tab.page.click("#theme")
        tab.page.click("#theme")
        tab.page.reload()
        assert tab.page.evaluate("getComputedStyle(document.body).backgroundColor") == grounds[-1], (
            "it is remembered"
        )
        assert tab.messages == []
        tab.context.close()
    light, dark = grounds[:2]
    assert grounds == [light, dark, dark, light] and light != dark


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_has_contrast(chromium, page_file, scheme):
    tab = Tab(chromium, page_file, color_scheme=scheme)
    assert tab.page.evaluate(LOW_CONTRAST) == []
    tab.context.close()


def test_no_width_scrolls_sideways(chromium, page_file):
    for width in WIDTHS:
        tab = Tab(chromium, page_file, width=width)
        assert tab.page.evaluate(SIDEWAYS) <= 0, width
        tab.context.close()


def test_a_map_covers_what_the_model_of_its_run_gets(chromium, pair, tmp_path):
    """One run has images in their shape, the other one images with bars."""
    runs, wide = [shutil.copytree(run, tmp_path / run.name) for run in pair], tmp_path / "wide.png"
    Image.effect_noise((100, 40), 60).convert("RGB").save(wide)
    at = runs[0] / "answers" / "finetune" / "answers"
    header, lines = (
        json.loads((at / "answers.json").read_text()),
        (at / "attention.jsonl").read_text().splitlines(),
    )
    header["prompt"]["image_fit"] = ["native, at most 30 patches"]
    (at / "answers.json").write_text(json.dumps(header))
    shares = bytes(range(5, 255, 25))
    look = json.loads(lines[0]) | {"grid": [2, 5], "map": base64.b64encode(shares).decode()}
    (at / "attention.jsonl").write_text("\n".join([json.dumps(look), *lines[1:], ""]))
    change_answer(runs[0], 0, images=[str(wide)])
    tab = Tab(chromium, write_page(runs, tmp_path / "report.html").path)
    own, padded = tab.page.locator(".maps figure").all()
    shown = own.locator("img").bounding_box()
    assert shown["width"] / shown["height"] == pytest.approx(2.5, rel=0.02)
    for i, (cell, share) in enumerate(zip(own.locator("rect").all(), shares, strict=True)):
        (line, column), box = divmod(i, 5), cell.bounding_box()
        assert cell.locator("title").text_content() == f"{100 * share / 255 * 0.125:.1f} %"
        assert box["x"] == pytest.approx(shown["x"] + shown["width"] * column / 5, abs=1)
        assert box["y"] == pytest.approx(shown["y"] + shown["height"] * line / 2, abs=1)
    square = padded.locator(".square").bounding_box()
    assert square["width"] == pytest.approx(square["height"]) and padded.locator("rect").count() == 4
    assert tab.messages == []
    tab.context.close()


def test_without_scripts_verdict_figures_and_puzzles_are_there(chromium, page_file):
    tab = Tab(chromium, page_file, java_script_enabled=False)
    assert tab.page.locator("h1").is_visible() and tab.page.locator(".figures tbody tr").count() > 8
    assert (
        tab.page.locator(".forest tbody tr").count() == 4
        and tab.page.locator(".forest svg circle").first.is_visible()
    )
    assert tab.page.locator(".card use").count() > 20 and not tab.page.locator("#filters").is_visible()
    tab.context.close()


def test_print_shows_all_tables_in_light(chromium, page_file):
    tab = Tab(chromium, page_file, color_scheme="dark")
    tab.page.evaluate("dispatchEvent(new Event('beforeprint'))")
    assert tab.page.locator("details[open]").count() == tab.page.locator("details").count() > 0
    tab.page.emulate_media(media="print")
    assert tab.page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
    assert not tab.page.locator(".bar").is_visible() and len(tab.page.pdf()) > 10_000
    tab.context.close()


def test_controls_have_names_images_have_texts_and_ids_are_unique(tab):
    assert tab.page.evaluate(BARE) == 0
    assert tab.page.evaluate("document.querySelectorAll('img:not([alt])').length") == 0
    assert tab.page.evaluate(TWICE) == []


def test_hostile_text_stays_text(chromium, pair, tmp_path):
    own = [shutil.copytree(run, tmp_path / run.name) for run in pair]
    for run in own:
        change_answer(run, 0, question=EVIL, raw=EVIL, score=0.25)
    tab = Tab(chromium, _written(runs_page(own), tmp_path))
    assert tab.question() == EVIL and tab.page.title() == "plain and direct · lmmkit report"
    assert tab.page.locator("#detail script, #detail h3 img, #list small img").count() == 0
    assert "do not add up" in (tab.page.text_content(".warn") or "")
    assert tab.messages == [] and len(tab.requests) == 1
    tab.context.close()


def test_many_runs_and_a_single_one_work(chromium, pair, tmp_path):
    many = [
        shutil.copytree(pair[i % 2], tmp_path / f"a-run-with-a-long-name-{i}{'n' * 200}") for i in range(8)
    ]
    for runs in (many, many[:2], pair[:1]):
        for width in (390, 1280):
            tab = Tab(chromium, _written(runs_page(runs), tmp_path), width=width)
            assert tab.messages == [] and tab.count() == 120
            assert tab.page.evaluate(SIDEWAYS) <= 0
            tab.context.close()


def test_a_page_without_answers_or_steps_works(chromium, pair, tmp_path):
    own = [shutil.copytree(run, tmp_path / run.name) for run in pair]
    for run in own:
        shutil.rmtree(run / "answers")
        (run / "metrics.jsonl").unlink()
    tab = Tab(chromium, _written(runs_page(own), tmp_path))
    assert (
        tab.messages == []
        and tab.page.locator("#setup").is_visible()
        and tab.page.locator("#samples").count() == 0
    )
    tab.context.close()


def test_the_page_of_a_grid(chromium, tmp_path):
    content = ablation()
    content["grid"], content["measures"]["accuracy"] = "g" * 200, f"answers/accuracy/{'m' * 200}"
    content["arms"][1]["variant"] = f"weights/{'v' * 200}"
    file = write_page([write_ablation(tmp_path, **content)], tmp_path / "grid.html").path
    for scheme in ("light", "dark"):
        tab = Tab(chromium, file, color_scheme=scheme)
        assert tab.messages == [] and len(tab.requests) == 1 and tab.page.evaluate(LOW_CONTRAST) == []
        tab.context.close()
    for width in WIDTHS:
        tab = Tab(chromium, file, width=width)
        assert tab.page.evaluate(SIDEWAYS) <= 0, width
        tab.context.close()


def _written(page: Page, folder: Path) -> Path:
    (folder / "page.html").write_text(page.text)
    return folder / "page.html"
