"""`lmmkit data show --html`: which samples, the bytes of the page, hostile text, and what is refused."""

from __future__ import annotations

import base64
import io
import json
import re

import pytest
from PIL import Image as Pil

from lmmkit.errors import UserError
from lmmkit.recipe import read_text
from lmmkit.report.data_page import data_page, stage_of
from tests.conftest import DIRECT, PLAIN
from tests.data.test_images import noisy_image
from tests.report.test_runs_page import EVIL, Parsed
from tests.test_cli import run


@pytest.fixture(scope="module")
def page(scenes):
    return data_page(read_text(DIRECT, name="tiny.yaml", root=scenes), count=5)


def test_each_sample_is_a_section_with_labelled_spans(page):
    parsed = Parsed(page.text)
    assert [attrs["id"] for tag, attrs in parsed.tags if tag == "section"] == [f"s{n}" for n in range(5)]
    labels = {text for tag, text in parsed.texts if tag == "b"}
    assert {"begin", "image 1", "response", "learned", "user"} <= labels
    assert page.text.count("<u>") > 5 and "in the order of training" in page.text and not page.warnings


def test_each_image_is_on_the_page_once(page):
    uris = re.findall(r'href="(data:image/webp[^"]+)"', page.text)
    used = set(re.findall(r'<use href="#(u\d+)"', page.text))
    assert len(uris) == len(set(uris)) == len(used) and used == set(re.findall(r'id="(u\d+)"', page.text))


def test_an_image_in_its_own_shape_is_drawn_in_it(scenes, tmp_path):
    rows = json.loads((scenes / "finetune.json").read_text())[:1]
    noisy_image(120, 24).save(tmp_path / "wide.png")
    (tmp_path / "wide.json").write_text(json.dumps([rows[0] | {"image": "wide.png"}]))
    sets = [f"{key}.image_fit={{kind: native, max_patches: 16}}" for key in ("data.questions", "model.chat")]
    sets += [f"data.questions.records={tmp_path / 'wide.json'}", f"data.questions.images={tmp_path}"]
    recipe = read_text(PLAIN, name="native.yaml", root=scenes, overrides=sets)
    text = data_page(recipe, source="questions", count=1).text
    (uri,) = re.findall(r'href="data:image/webp;base64,([^"]+)"', text)
    width, height = Pil.open(io.BytesIO(base64.b64decode(uri))).size
    assert width > 3 * height and "preserveAspectRatio" not in text  # its default keeps the shape
    assert "in their own shape" in text and "pixels for each of its inputs" not in text


def test_a_page_has_as_many_samples_as_its_bytes_allow(tiny, page):
    limit = 3 * len(page.text) // 4
    smaller = data_page(tiny(), count=5, limit=limit)
    shown = smaller.text.count('<section class="one"')
    assert 0 < shown < 5 and len(smaller.text.encode()) <= limit
    assert (
        f"{5 - shown} further samples left out" in smaller.warnings[0] and smaller.warnings[0] in smaller.text
    )
    nothing = data_page(tiny(), count=2, limit=1000)
    assert "room for 0.001 MB" in nothing.text
    assert "2 further samples left out" in nothing.warnings[0] and '<section class="one"' not in nothing.text


def test_a_source_or_a_stage_chooses_the_samples(tiny):
    text = data_page(tiny(), source="questions", first=7, count=2).text
    assert "What stage finetune is trained on" in text and "records of questions" in text
    assert 'id="s7"' in text and 'id="s8"' in text and "(record 7)" in text and 'id="s9"' not in text
    assert "What stage finetune" in data_page(tiny(), stage="finetune", count=1).text
    recipe = tiny()
    assert stage_of(recipe, None, None) == stage_of(recipe, "captions", None) == "pretrain"
    for source, stage, code in (
        (None, "pretrian", "data/unknown-stage"), ("heldout", None, "data/not-trained"),
        ("captions", "finetune", "data/not-trained"),
    ):  # fmt: skip
        with pytest.raises(UserError, match=code):
            stage_of(recipe, source, stage)
    for first in (-1, 10_000):
        with pytest.raises(UserError, match="data/no-record"):
            data_page(recipe, first=first)


def test_hostile_text_stays_text(tiny, scenes, tmp_path):
    rows = json.loads((scenes / "finetune.json").read_text())[:2]
    rows[0]["id"] = EVIL
    for turn in rows[0]["conversations"]:
        turn["value"] = ("<image>\n" if "<image>" in turn["value"] else "") + EVIL
    (tmp_path / "evil.json").write_text(json.dumps(rows))
    sets = (f"data.questions.records={tmp_path / 'evil.json'}", "model.text.context=2000")
    found = data_page(tiny(*sets, f"data.questions.images={scenes}"), source="questions")
    parsed = Parsed(found.text)
    assert [tag for tag, _ in parsed.tags].count("script") == 3
    assert not [attrs for _, attrs in parsed.tags if any(name.startswith("on") for name in attrs)]
    assert not [tag for tag, _ in parsed.tags if tag == "img"]
    assert "".join(text for _, text in parsed.texts).count("<script>document.title='x'</script>") > 2


def test_the_policy_allows_no_other_code_and_no_address(page):
    parsed = Parsed(page.text)
    policy = next(a["content"] for _, a in parsed.tags if a.get("http-equiv") == "Content-Security-Policy")
    assert policy.startswith("default-src 'none'; img-src data:;") and "unsafe" not in policy
    for tag, attrs in parsed.tags:
        assert "style" not in attrs
        for name in ("src", "href"):
            assert attrs.get(name, "#").startswith(("#", "data:")), (tag, attrs)


def test_the_command_writes_the_page(scenes, tmp_path):
    (tmp_path / "mine.yaml").write_text(DIRECT)
    asked = ("data", "show", tmp_path / "mine.yaml")
    where = ("--root", scenes, "--count", 1)
    text = run(*asked, *where, "--html", tmp_path / "new" / "page.html")
    assert "page.html: 0.0" in text and (tmp_path / "new" / "page.html").read_text().startswith("<!doctype")
    (tmp_path / "notes.txt").write_text("mine")
    assert "report/out" in run(*asked, *where, "--html", tmp_path / "notes.txt", code=2)
    assert "data/needs-html" in run(*asked, *where, "--stage", "finetune", code=2)
    text = run(*asked, *where)
    assert text.count("(record 0)") == 4, "the first record of each source"
    assert "of heldout" in run(*asked, *where, "--record", 100, code=2)
