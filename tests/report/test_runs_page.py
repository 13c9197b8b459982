"""The page of runs as a text: its figures, what it marks, hostile text, its policy and its bytes."""

from __future__ import annotations

import base64
import hashlib
import html.parser
import io
import json
import re
import shutil
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from lmmkit.errors import UserError
from lmmkit.report.asked import ask_runs
from lmmkit.report.image_shelf import SIDE, ImageShelf, small_webp
from lmmkit.report.loaded_run import load_runs
from lmmkit.report.runs_page import LIMITS, runs_page
from lmmkit.report.sections.accuracy import forest_of
from lmmkit.report.sections.measures import half_width
from lmmkit.report.sections.puzzles import puzzle_results, shown_puzzles
from lmmkit.report.sections.samples import fits_of, samples_of
from lmmkit.report.sections.setup import setup_of
from lmmkit.report.sections.summary import summarise_runs
from lmmkit.report.sections.training import OF_ONE, training_of
from lmmkit.report.wording import in_percent
from lmmkit.runs.run_folder import RunFolder
from lmmkit.runs.run_lock import lock
from tests.support.run_folders import change_answer, draw_images, items_on, make_pair, write_run

EVIL = "</script><script>document.title='x'</script><img src=x onerror=alert(1)>\u2028'\"&amp;"


class Parsed(html.parser.HTMLParser):
    """Holds what a browser would read: ids, tags with their attributes, and the texts of each element of a kind."""

    def __init__(self, text: str):
        super().__init__()
        self.tags: list[tuple[str, dict]] = []
        self.texts: list[tuple[str, str]] = []
        self._open = ""
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        self._open = tag

    def handle_data(self, data):
        self.texts.append((self._open, data))

    @property
    def data(self) -> dict:
        return json.loads(
            next(text for tag, text in self.texts if tag == "script" and text.startswith('{"curves"'))
        )


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    return make_pair(tmp_path_factory.mktemp("pair"))


@pytest.fixture
def own_pair(pair, tmp_path):
    """Returns a copy of the pair that a test may change."""
    return [shutil.copytree(run, tmp_path / run.name) for run in pair]


@pytest.fixture(scope="module")
def page(pair):
    return runs_page(pair)


def test_every_accuracy_and_interval_is_that_of_results_json(page, pair):
    results = [json.loads((run / "results.json").read_text())["answers"] for run in pair]
    rows = re.findall(r'<tr data-kind="([^"]*)">(.*?)</tr>', page.text, re.S)
    assert [kind for kind, _ in rows] == ["", "colour", "count", "shape"]
    for kind, row in rows:
        cells = re.findall(
            r'<span class="run">.*?<span class="v">([^<]*)</span><span class="ci">([^<]*)</span>', row, re.S
        )
        want = []
        for suffix in ("", "_blank", "_swapped"):
            for found in results:
                f = found[f"accuracy{suffix}" + (f"/{kind}" if kind else "")]
                want.append((in_percent(f["value"]), f"{in_percent(f['low'])}\u2013{in_percent(f['high'])}"))
        assert cells == want


def test_the_verdict_says_what_the_interval_carries(page, pair, tmp_path):
    assert "<h1>direct answers more questions right than plain</h1>" in page.text and not page.warnings
    items = items_on(draw_images(tmp_path / "images", 20))
    alike = [write_run(tmp_path / name, items, skill=0.5, seed=seed) for name, seed in (("a", 3), ("b", 4))]
    text = runs_page(alike).text
    assert "<h1>No difference in accuracy shown between a and b</h1>" in text
    assert "significant" not in (page.text + text).lower() and "One seed a run." in text


def test_a_page_of_one_run_and_of_three(pair, tmp_path):
    one = runs_page(pair[:1]).text
    assert "of 120 questions right</h1>" in one and "difference" not in Parsed(one).data
    third = shutil.copytree(pair[1], tmp_path / "third")
    three = runs_page([*pair, third]).text
    assert "<h1>direct and third differ in accuracy from plain</h1>" in three
    assert "2 intervals of 95 % each" in three


def test_agreement_adds_up(pair):
    asked = ask_runs(load_runs(pair))
    forest = forest_of(asked)
    assert forest is not None and sum(forest.agree.values()) == 120
    right = [json.loads((run / "results.json").read_text())["answers"]["accuracy"]["value"] for run in pair]
    assert forest.agree[True, True] + forest.agree[True, False] == round(120 * right[0])
    assert forest.agree[True, True] + forest.agree.get((False, True), 0) == round(120 * right[1])


def test_curves_end_where_metrics_end_and_long_ones_are_means(pair, tmp_path):
    training = training_of(load_runs(pair))
    assert training is not None
    last = json.loads((pair[0] / "metrics.jsonl").read_text().splitlines()[-1])
    curves = training.curves[0]
    assert curves["step"][-1] == 40 and curves["series"]["terms/next_token"][-1] == pytest.approx(
        last["loss"], rel=1e-4
    )
    assert curves["series"]["chance/next_token"] == {"value": 6.5, "first": 0, "last": 39}
    assert curves["tokens"][-1] == 4000 and curves["minutes"][-1] == pytest.approx(40 * 0.5 / 60, abs=1e-3)
    run = shutil.copytree(pair[0], tmp_path / "long")
    lines = [
        {"step": i + 1, "stage": "pretrain", "loss": float(i), "tokens": 1, "seconds": 0.1}
        for i in range(10_000)
    ]
    lines.insert(5000, {"step": 5000, "stage": "pretrain", "val/accuracy": 0.5})
    (run / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    long = training_of(load_runs([run]))
    assert long is not None
    loss = long.curves[0]["series"]["loss"]
    assert len(loss) <= OF_ONE and sum(loss) / len(loss) == pytest.approx(9999 / 2, rel=1e-3)
    assert [v for v in long.curves[0]["series"]["val/accuracy"] if v is not None] == [0.5]


def test_recipe_differences_are_those_of_diff_by_class(pair):
    setup = setup_of(load_runs(pair), "answers")
    found = {row.key: list(row.values) for rows in setup.differences.values() for row in rows}
    assert found["seed"] == ["1", "2"] and found["plugins.text_order"][0] is None
    assert {row.key for row in setup.differences["output"]} == {"evaluate.tasks.restore"}
    assert dict(setup.facts)["CPU time"] == ["1 min 41 s", "1 min 42 s"]
    assert setup.commands[-1] == "lmmkit report runs/plain runs/direct --on answers"


def test_recipes_of_runs_that_have_no_column_are_compared_too(pair, tmp_path):
    runs = [shutil.copytree(pair[0], tmp_path / f"r{i}") for i in range(8)]
    same = setup_of(load_runs(runs), "answers")
    assert same.others == 2 and not same.differences
    for run, seed in zip(runs[6:], (5, 6), strict=True):
        RunFolder(run).resolved.write_text(
            re.sub(r"^seed: \d+$", f"seed: {seed}", RunFolder(run).resolved.read_text(), flags=re.MULTILINE)
        )
    ((row,),) = setup_of(load_runs(runs), "answers").differences.values()
    assert (row.key, list(row.values), list(row.others)) == ("seed", ["1"] * 6, ["5", "6"])
    assert '<td data-label="2 further runs"><code>5</code>; <code>6</code></td>' in runs_page(runs).text


def test_samples_and_puzzles_are_those_of_the_files(page, pair):
    data = Parsed(page.text).data
    lines = [
        json.loads(x) for x in (pair[1] / "answers/finetune/answers/answers.jsonl").read_text().splitlines()
    ]
    by_key = {(line["condition"], line["id"]): line for line in lines}
    assert len(data["samples"]) == 120 and data["conditions"] == ["own", "blank", "swapped"]
    for sample in data["samples"]:
        for place, condition in enumerate(data["conditions"]):
            line = by_key[condition, sample["k"]]
            assert (sample["a"][1][place], sample["r"][1][place]) == (line["raw"], line["score"])
    assert sum(sample["h"][0] is not None for sample in data["samples"]) == 30
    assert "80 of 120 right (66.7 %, chance 20.0 %)" in page.text
    assert "the first 8 images of the file, then 4 chosen because they are wrong" in page.text


def test_each_image_is_on_the_page_once_and_small(page, pair):
    uris = re.findall(r"data:image/webp;base64,[A-Za-z0-9+/=]+", page.text)
    assert len(uris) == len(set(uris)) == 40


def test_images_are_shrunk_and_bad_files_are_named(tmp_path):
    Image.new("RGB", (900, 300)).save(tmp_path / "big.png")
    (tmp_path / "text.png").write_text("no image")
    shelf = ImageShelf()
    assert shelf.place(str(tmp_path / "big.png")) == 0 and shelf.place(str(tmp_path / "text.png")) is None
    assert (
        shelf.place(str(tmp_path / "nothing.png")) is None
        and shelf.place(None) is None
        and shelf.place(str(tmp_path)) is None
    )
    assert {path.rpartition("/")[2] for path in shelf.missing} == {"text.png", "nothing.png", tmp_path.name}
    small = Image.open(io.BytesIO(base64.b64decode(shelf.uris()[0].partition(",")[2])))
    assert (small.format, small.size) == ("WEBP", (SIDE, SIDE // 3))


def test_an_image_is_shown_as_the_model_gets_it(tmp_path):
    turned, exif = Image.new("RGB", (60, 40), (200, 30, 30)), Image.Exif()
    turned.paste((30, 30, 200), (0, 0, 20, 40))  # at the left of the file, so at the top of the image
    exif[0x0112] = 6
    turned.save(tmp_path / "turned.jpg", exif=exif, quality=95)
    Image.new("RGBA", (40, 60), (0, 0, 0, 0)).save(tmp_path / "transparent.png")
    Image.fromarray(np.full((60, 40), 30_000, np.uint16)).save(tmp_path / "grey.png")
    for name, top, bottom in (
        ("turned.jpg", (30, 30, 200), (200, 30, 30)),
        ("transparent.png", (255, 255, 255), (255, 255, 255)),
        ("grey.png", (117, 117, 117), (117, 117, 117)),
    ):
        uri = small_webp(str(tmp_path / name)) or ""
        with Image.open(io.BytesIO(base64.b64decode(uri.partition(",")[2]))) as shown:
            pixels = np.asarray(shown.convert("RGB"))
        assert pixels.shape == (60, 40, 3), name
        assert np.abs(pixels[5, 20] - np.float64(top)).max() < 10, name
        assert np.abs(pixels[50, 20] - np.float64(bottom)).max() < 10, name


def test_hostile_text_stays_text(own_pair):
    for run in own_pair:
        for n in (0, 120, 240):
            change_answer(run, n, question=EVIL, raw=EVIL)
        (run / "plan.txt").write_text(EVIL)
        results = json.loads((run / "results.json").read_text())
        results["answers"] |= {f"accuracy{c}/{EVIL}": {"value": 0.5, "n": 3} for c in ("", "_blank")}
        (run / "results.json").write_text(json.dumps(results))
        facts = json.loads((run / "run.json").read_text()) | {
            "data": {EVIL: {EVIL: EVIL}},
            "plugins": {EVIL: EVIL},
        }
        (run / "run.json").write_text(json.dumps(facts))
        (run / "anomalies.jsonl").write_text(
            json.dumps({"step": 1, "kind": EVIL, "of": EVIL, "stage": EVIL}) + "\n"
        )
    parsed = Parsed(runs_page(own_pair).text)
    assert [tag for tag, _ in parsed.tags].count("script") == 3
    assert not [attrs for _, attrs in parsed.tags if any(name.startswith("on") for name in attrs)]
    assert not [attrs for tag, attrs in parsed.tags if tag == "img"]
    assert parsed.data["samples"][0]["q"] == EVIL and parsed.data["samples"][0]["a"][0][0] == EVIL.strip()


def test_the_policy_names_each_script_and_style_and_nothing_else_loads(page):
    parsed = Parsed(page.text)
    policy = next(a["content"] for t, a in parsed.tags if a.get("http-equiv") == "Content-Security-Policy")
    assert policy.startswith("default-src 'none';") and "unsafe" not in policy and "http" not in policy
    codes = re.findall(r"<(?:script|style)>(.*?)</(?:script|style)>", page.text, re.S)
    assert len(codes) == 3
    for code in codes:
        assert f"'sha256-{base64.b64encode(hashlib.sha256(code.encode()).digest()).decode()}'" in policy
    for tag, attrs in parsed.tags:
        assert "style" not in attrs, "a policy without `unsafe-inline` refuses it"
        for name in ("src", "href"):
            assert attrs.get(name, "#").startswith(("#", "data:")), (tag, attrs)


def test_ids_are_unique_and_controls_have_names(page):
    parsed = Parsed(page.text)
    ids = [attrs["id"] for _, attrs in parsed.tags if "id" in attrs]
    assert len(ids) == len(set(ids))
    for _, attrs in parsed.tags:
        for name in ("aria-labelledby",):
            assert attrs.get(name) is None or attrs[name] in ids
        if (attrs.get("href") or "").startswith("#"):
            assert attrs["href"][1:] in ids, attrs


@pytest.mark.parametrize(
    ("spoil", "says"),
    [
        (lambda run: (run / "results.json").unlink(), "direct has no results"),
        (lambda run: (run / "metrics.jsonl").unlink(), "direct has no logged steps"),
        (lambda run: (run / "plan.txt").unlink(), "direct has no plan"),
        (lambda run: (run / "recipe.resolved.yaml").unlink(), "direct has no recipe"),
        (lambda run: shutil.rmtree(run / "answers"), "No answers of task answers in direct"),
        (lambda run: shutil.rmtree(run / "model"), "direct stopped at step 40, without a model of pretrain and finetune"),
        (lambda run: change_answer(run, 0, score=0.5), "Answers do not add up to results.json: direct, all questions, own image"),
        (lambda run: change_answer(run, 0, prompt_sha="x"), "direct answered another set of questions than plain: 119 of 120"),
        (lambda run: (run / "answers/finetune/answers/answers.json").unlink(), "direct has no answers.json beside its answers"),
        (lambda run: cut_log(run), "The log of direct begins at step 21: its tokens and times are without the steps before."),
        (lambda run: cut_log(run, 0, 11), "The log of direct (step 11 of 12) ends early: tokens and times are without the steps after."),
        (lambda run: other_version(run), "direct answered another version of the questions than plain"),
        (lambda run: facts(run, data={"captions": 1, "questions": 2}), "direct was trained on another version of captions and questions"),
        (lambda run: facts(run, data={"captions": {"count": 9, "records": "captions 1", "images": "9 files"}}), "trained on other sources than plain: questions"),
    ],
)  # fmt: skip
def test_what_is_missing_or_does_not_fit_is_marked_and_the_page_works(own_pair, spoil, says):
    spoil(own_pair[1])
    page = runs_page(own_pair)
    assert any(says in warning for warning in page.warnings), page.warnings
    assert html.parser.unescape(page.text).count(says) == 1
    assert '<section id="setup"' in page.text and "<h1>" in page.text


def test_what_is_wrong_with_many_runs_is_one_mark(pair, tmp_path):
    first, *others = (shutil.copytree(pair[0], tmp_path / f"run-{i}") for i in range(9))
    for run in others:
        (run / "plan.txt").unlink()
        cut_log(run)
        facts(run, data={"captions": 1, "questions": 2})
    warnings = runs_page([first, *others]).warnings
    for says in (
        "have no plan (plan.txt)",
        "begin late: their tokens",
        "were trained on another version of captions",
    ):
        (found,) = (warning for warning in warnings if says in warning)
        assert " and 2 more" in found and found.count(",") >= 5


def test_runs_that_were_never_evaluated_have_a_page(own_pair):
    for run in own_pair:
        (run / "results.json").unlink()
        shutil.rmtree(run / "answers")
    for runs in (own_pair, own_pair[:1]):
        page = runs_page(runs)
        assert "no accuracy to show</h1>" in page.text and '<section id="training"' in page.text
        assert any("No run has results of questions" in warning for warning in page.warnings)


def test_a_table_without_a_row_has_no_heading(own_pair):
    whole = runs_page(own_pair[1:]).text
    assert "What was gained" in whole and "What it cost" in whole
    (own_pair[1] / "metrics.jsonl").unlink()
    (own_pair[1] / "run.json").write_text(json.dumps({"plans": {}, "root": "."}))
    assert "What it cost" not in runs_page(own_pair[1:]).text


def cut_log(run, begin=20, end=None):
    lines = (run / "metrics.jsonl").read_text().splitlines(keepends=True)
    (run / "metrics.jsonl").write_text("".join(lines[begin:end]))


def other_version(run):
    file = run / "answers/finetune/answers/answers.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"data_sha256": "0" * 64}))


def facts(run, **values):
    (run / "run.json").write_text(json.dumps(json.loads((run / "run.json").read_text()) | values))


def test_a_run_that_trains_is_marked(own_pair):
    with lock(RunFolder(own_pair[0])):
        assert runs_page(own_pair).warnings == [
            "plain is still training, at step 40. Its figures are not final."
        ]


def test_images_that_are_gone_are_counted(own_pair):
    for n in range(3):
        change_answer(own_pair[0], n, images=["/nowhere.png"])
    assert "1 image could not be read" in runs_page(own_pair).text


def test_without_room_there_are_fewer_samples_and_the_page_says_which(pair):
    whole = len(runs_page(pair).text.encode())
    bare = whole - len(json.dumps(Parsed(runs_page(pair).text).data))
    limit = bare + 40_000
    text = runs_page(pair, limit=limit).text
    data = Parsed(text).data
    assert len(text.encode()) <= limit and 5 < len(data["samples"]) < 120
    assert f"{len(data['samples'])} of 120 questions, as many as the page has room for" in text
    differ = [s for s in data["samples"] if (s["r"][0][0] >= 0.5) != (s["r"][1][0] >= 0.5)]
    assert len(differ) >= len(data["samples"]) // 2
    order = [s["k"] for s in data["samples"]]
    assert order == sorted(order), "they remain in the order of the file"


def test_no_room_at_all_leaves_no_samples(pair):
    samples = samples_of(ask_runs(load_runs(pair)), ImageShelf(), room=0)
    assert samples is not None and samples.rows == [] and samples.of == 120


def test_fifty_runs_fit(pair, tmp_path):
    runs = [shutil.copytree(pair[i % 2], tmp_path / f"run-{i:02d}") for i in range(50)]
    page = runs_page(runs)
    assert len(page.text.encode()) < LIMITS[1] < 5_000_000
    assert "25 of 49 runs differ in accuracy from run-00" in page.text
    assert "the first 6 are drawn by type" in page.text and "44 further runs" in page.text


def test_an_axis_of_differences_is_a_multiple_of_five_points():
    from lmmkit.evaluate.task import Figure

    figures = [
        Figure(value=0.01, low=-0.02, high=0.05, n=1),
        None,
        Figure(value=0.1, low=-0.151, high=0.2, n=1),
    ]
    assert [half_width(figures[:1]), half_width(figures), half_width([None])] == pytest.approx(
        [0.05, 0.2, 0.05]
    )


def test_attention_that_a_term_trains_is_noted(pair):
    summary = summarise_runs(ask_runs(load_runs(pair)), [])
    (looks,) = [m for m in summary.measures if m.label.startswith("attention")]
    assert looks.note == "spread evenly 25.0; direct trained for attention"
    assert looks.differences[0] is not None and looks.differences[0].value == 0.0


def test_fields_of_another_type_are_refused_and_damaged_maps_left_out(own_pair):
    file = own_pair[0] / "answers/finetune/answers/attention.jsonl"
    lines = [json.loads(line) for line in file.read_text().splitlines()]
    spoiled = [{"map": "!"}, {"map": "AAAA"}, {"grid": [2]}, {"grid": [0, 4]}, {"peak": "x"}, {"map": None}]
    lines = [line | change for line, change in zip(lines, spoiled, strict=False)] + lines[len(spoiled) :]
    file.write_text("".join(json.dumps(line) + "\n" for line in lines))
    samples = Parsed(runs_page(own_pair).text).data["samples"]
    assert [s["h"][0] is None for s in samples[:7]] == [True] * 6 + [False]
    for values in ({"groups": "x"}, {"images": [3]}, {"question": None}, {"cluster": 4}):
        before = (own_pair[0] / "answers/finetune/answers/answers.jsonl").read_text()
        change_answer(own_pair[0], 1, **values)
        with pytest.raises(UserError, match="answers/damaged"):
            runs_page(own_pair)
        (own_pair[0] / "answers/finetune/answers/answers.jsonl").write_text(before)


@pytest.mark.parametrize(
    ("fits", "part"),
    [
        (["pad"], "pad"), (["crop"], "crop"), (["stretch"], "stretch"), (["native, at most 9 patches"], "stretch"),
        ([EVIL], "stretch"), ([], "pad"), (3, "pad"), ([["crop"]], "stretch"),
    ],
)  # fmt: skip
def test_maps_cover_what_a_model_gets(pair, fits, part):
    asked = ask_runs(load_runs(pair))
    changed = replace(asked.of[1], header={"prompt": {"image_fit": fits}})
    assert fits_of(replace(asked, of=[asked.of[0], changed])) == ["pad", part]


def test_half_a_surrogate_pair_can_be_written(own_pair):
    change_answer(own_pair[0], 0, raw="a \ud800 b")
    assert "a ? b" in runs_page(own_pair).text.encode().decode()


def test_many_series_get_fewer_points(pair):
    whole, less = (training_of(load_runs(pair), room=room) for room in (10**9, 3000))
    assert whole is not None and less is not None
    assert len(whole.curves[0]["step"]) == 40 and len(less.curves[0]["step"]) == 40, "not fewer than 50"


def test_puzzles_are_one_of_each_image_and_damaged_ones_left_out(own_pair):
    file = own_pair[1] / "answers/finetune/terms/puzzles.json"
    content = json.loads(file.read_text())
    puzzles = content["instances"]["image_order"]["puzzles"]
    puzzles[0] |= {"predicted": [0, 1, 2, 9]}
    puzzles[3] |= {"right": None}
    puzzles[6] |= {"images": [4]}
    content["instances"] |= {"other": 3, "more": {"n": "x"}}
    file.write_text(json.dumps(content))
    results = puzzle_results(load_runs(own_pair))
    assert [(r.run, r.instance, r.grid, r.n, r.right) for r in results] == [
        (1, "image_order", 2, 120, 80),
        (1, "text_order", 0, 120, 80),
    ]
    assert len(results[0].puzzles) == 117
    shown = shown_puzzles(results)
    images = [card["images"][0] for card in shown[0].cards]
    assert len(set(images)) == len(images) == 12 and (shown[0].first, shown[0].wrong) == (8, 4)
    assert all(not card["right"] for card in shown[0].cards[8:])
    wrong = next(card for card in shown[1].cards if not card["right"])
    assert wrong["words"] == [("a", True), ("cross", False), ("red", False)]


@pytest.mark.parametrize(("value", "drawn"), [(1234.5, False), (0.62, True)])
def test_a_headline_that_is_no_mean_of_scores_is_not_compared(own_pair, value, drawn):
    for run in own_pair:
        results = json.loads((run / "results.json").read_text())["answers"]
        for suffix in ("", "_blank", "_swapped"):
            figure = results.pop(f"accuracy{suffix}")
            results = {f"points{suffix}": figure | {"value": value, "low": None, "high": None}, **results}
        results = {name: x for name, x in results.items() if not name.startswith("accuracy")}
        results = {"points": results.pop("points"), **results}
        (run / "results.json").write_text(json.dumps({"answers": results}))
    page = runs_page(own_pair)
    (warning,) = page.warnings
    assert warning.startswith("The headline of task answers is points, no mean of scores")
    assert ("1,234" in warning) is not drawn and ('id="accuracy"' in page.text) is drawn
    assert "not compared</h1>" in page.text if drawn else "no accuracy to show</h1>" in page.text
    assert Parsed(page.text).data["samples"]


def test_a_long_text_leaves_room_for_other_questions(own_pair):
    first = json.loads((own_pair[1] / "answers/finetune/answers/answers.jsonl").read_text().splitlines()[0])
    for n in range(0, 360, 120):  # each condition has 120 lines
        change_answer(own_pair[1], n, raw="y" * 1_500_000, question="q" * 1_500_000)
    samples = Parsed(runs_page(own_pair[1:]).text).data["samples"]
    assert len(samples) == 120 and samples[0]["k"] == first["id"]
    assert (
        samples[0]["q"] == "q" * 10_000 + "\u2026 (1,500,000 characters)"
        and len(samples[0]["a"][0][0]) < 10_100
    )


def test_questions_of_one_image_show_no_difference(tmp_path):
    items = items_on(draw_images(tmp_path / "images", 1))
    runs = [
        write_run(tmp_path / name, items, skill=skill, seed=1) for name, skill in (("a", -1.0), ("b", 1.0))
    ]
    text = runs_page(runs).text
    assert "<h1>No difference in accuracy shown between a and b</h1>" in text
    assert "The questions are about 1 image or scene: differences have no interval." in text
    items = items_on(draw_images(tmp_path / "more", 9))
    runs = [write_run(tmp_path / name, items, skill=0.5, seed=seed) for name, seed in (("c", 1), ("d", 2))]
    assert "about 9 images or scenes: differences have intervals that are too narrow" in runs_page(runs).text


def test_the_value_of_a_term_is_no_percentage(own_pair):
    for run in own_pair:
        results = json.loads((run / "results.json").read_text())
        results["terms"] = {"next_token": {"value": 0.61, "n": 9}, "guided_loss/mass": {"value": 0.3, "n": 9}}
        (run / "results.json").write_text(json.dumps(results))
    page = runs_page(own_pair, on="terms")
    assert "no accuracy to show</h1>" in page.text and "61.0" not in re.sub(
        r"<script.*?</script>", "", page.text, flags=re.S
    )
    assert any(
        "next_token, no mean of scores" in warning and "plain 0.610" in warning for warning in page.warnings
    )


@pytest.mark.parametrize("change", [{"low": None}, {"high": "x"}, {"n": 1e300}, {"value": 1e308}])
def test_a_damaged_figure_has_a_page(own_pair, change):
    results = json.loads((own_pair[0] / "results.json").read_text())
    results["answers"]["accuracy"] |= change
    (own_pair[0] / "results.json").write_text(json.dumps(results))
    header = own_pair[0] / "answers/finetune/answers/answers.json"
    header.write_text(json.dumps(json.loads(header.read_text()) | {"data_sha256": [1]}))
    assert '<section id="setup"' in runs_page(own_pair[:1]).text and runs_page(own_pair).warnings


def test_marks_of_direction_end_with_their_text(own_pair):
    run = own_pair[1].rename(own_pair[1].with_name("dir\u202ect\x1b"))
    text = runs_page([own_pair[0], run]).text
    assert "dir\ufffdct\ufffd" in text and "<h1>dir\ufffdct\ufffd answers" in text
    assert "span) { unicode-bidi: isolate; }" in text
