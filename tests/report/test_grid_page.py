"""The page of a grid: each figure of ablation.json, the verdict, and damaged files."""

from __future__ import annotations

import json
import re
import shlex
from html import unescape

import pytest

from lmmkit.errors import UserError
from lmmkit.report.grid_page import grid_page
from tests.report.test_runs_page import EVIL, Parsed
from tests.support.ablation_file import ablation, write_ablation


@pytest.fixture
def page(tmp_path):
    return grid_page(write_ablation(tmp_path))


def test_the_head_says_which_variants_differ_after_the_correction(page):
    head = re.findall(r"<h1>(.*?)</h1>", page.text)
    assert head == ["accuracy: lower with no-token, at equal steps and at equal time"]
    assert "significant" not in page.text.lower()
    differences = [arm["measures"]["accuracy"]["difference"] for arm in ablation()["arms"]]
    n = sum(found is not None and found["p_holm"] is not None for found in differences)
    assert n == 6 and f"correction for {n} differences of a measure" in page.text.replace("&#39;", "'")


def test_every_figure_is_that_of_the_file(page):
    rows = re.findall(r"<tr>\s*<th scope=\"row\">([\w-]+).*?</tr>", page.text, re.S)
    text = re.sub(r"\s+", " ", page.text)
    for arm in ablation()["arms"]:
        assert arm["variant"] in rows
        found = arm["measures"]["accuracy"]
        shown = f'<span class="v">{100 * found["value"]:.1f}</span><span class="ci">{100 * found["low"]:.1f}\u2013{100 * found["high"]:.1f}</span>'
        assert shown in text
        loss = arm["measures"]["loss"]
        assert f'<span class="v">{loss["value"]:.3f}</span>' in text
    assert '<span class="v">\u221210.0</span><span class="ci">\u221213.0 to \u22127.0</span>' in text
    assert "0.004" in text and "0.700" in text and "1 min 06 s" in text and "\u00d7 1.10" in text


def test_variants_that_change_nothing_or_are_equal_are_marked(page):
    assert page.warnings == [
        "same: the same results as base; changes no key (at equal steps and equal time)."
    ]


def test_unequal_steps_of_recipes_are_marked(tmp_path):
    """At equal time other steps are what was asked for."""
    content = ablation()
    for arm in content["arms"]:
        arm["cost"]["steps"] = 100 if arm["variant"] == "base" else 1600
    (tmp_path / "ablation.json").write_text(json.dumps(content))
    found = [each for each in grid_page(tmp_path).warnings if "by its recipe" in each]
    assert "no-token: 1,600 steps by its recipe, the base has 100 (at equal steps)." in found
    assert not any("time" in each for each in found)


def test_one_seed_and_missing_runs_are_marked(tmp_path):
    content = ablation()
    content["seeds"] = [1]
    (tmp_path / "ablation.json").write_text(json.dumps(content))
    warnings = " ".join(grid_page(tmp_path).warnings)
    assert "One seed: there is no interval over seeds" in warnings and "missing" not in warnings
    content["seeds"] = [1, 2, 3, 4, 5]
    content["arms"][1]["runs"] = content["arms"][1]["runs"][:1]
    content["arms"][2]["runs"] = []
    (tmp_path / "ablation.json").write_text(json.dumps(content))
    warnings = " ".join(grid_page(tmp_path).warnings)
    assert (
        "Runs are missing (equal time): base (3 of 5), no-token (3 of 5)" in warnings
        and "Runs are missing (equal steps): base (3 of 5), no-token (1 of 5) and same (3 of 5)." in warnings
        and "both: no finished run (at equal steps)" in warnings
    )


def test_a_grid_without_any_run_has_a_page(tmp_path):
    content = ablation()
    for arm in content["arms"]:
        arm |= {"runs": [], "measures": {}, "cost": {}}
    (tmp_path / "ablation.json").write_text(json.dumps(content))
    assert "no variant has been compared yet" in grid_page(tmp_path).text


@pytest.mark.parametrize(
    "changes",
    [
        {"format": 2},
        {"format": True},
        {"equal": ["steps"]},
        {"equal": ["steps", "tokens"]},
        {"arms": []},
        {"arms": [{}]},
        {"arms": [3]},
        {"measures": {}},
        {"equal": "steps"},
        {"grid": None},
        {"file": None},
        {"seeds": []},
    ],
)
def test_a_damaged_file_is_refused(tmp_path, changes):
    with pytest.raises(UserError, match="report/damaged-grid"):
        grid_page(write_ablation(tmp_path, **changes))


def test_the_command_that_makes_it_again_names_its_data_and_its_store(tmp_path):
    folder = tmp_path / "grids" / "tokens"
    folder.mkdir(parents=True)
    for path, store in ((folder, ["--runs", str(tmp_path)]), (tmp_path, [])):
        text = unescape(grid_page(write_ablation(path)).text)
        (command,) = re.findall(r'id="commands">(.*?)</pre>', text)
        assert shlex.split(command) == ["lmmkit", "ablate", "my grids/tokens.yaml", "--root", "data", *store]


def test_a_file_that_is_no_json_is_refused(tmp_path):
    (tmp_path / "ablation.json").write_text("{")
    with pytest.raises(UserError, match="run/damaged"):
        grid_page(tmp_path / "ablation.json")


def test_hostile_text_stays_text(tmp_path):
    content = ablation()
    content["grid"] = content["base"] = content["arms"][1]["variant"] = EVIL
    content["arms"][1]["changes"][0]["key"] = EVIL
    content["arms"][1]["runs"][0]["folder"] = EVIL
    (tmp_path / "ablation.json").write_text(json.dumps(content))
    tags = [tag for tag, _ in Parsed(grid_page(tmp_path).text).tags]
    assert tags.count("script") == 3 and "img" not in tags


def test_names_turn_no_direction(tmp_path):
    content, name = ablation(), "a\u202eb"
    arm = content["arms"][1]
    content["grid"] = content["base"] = arm["variant"] = arm["changes"][0]["key"] = name
    arm["runs"][0]["folder"] = arm["changes"][0]["here"] = name
    arm["same_results_as"] = [name]
    (tmp_path / "ablation.json").write_text(json.dumps(content))
    text = grid_page(tmp_path).text
    assert "\u202e" not in text and text.count("a\ufffdb") >= 7


def write(tmp_path, content):
    (tmp_path / "ablation.json").write_text(json.dumps(content))
    return re.sub(r"\s+", " ", unescape(grid_page(tmp_path).text))


def section(page, measure):
    return re.findall(rf"<h3>{measure} .*?</table>", page)[0]


def test_a_loss_below_1_is_no_share_and_a_negative_share_is_one(tmp_path):
    content = ablation()
    for arm in content["arms"]:
        arm["measures"]["loss"] = {**arm["measures"]["loss"], "value": 0.61, "low": 0.5, "high": 0.7}
        for each in arm["measures"]["loss"]["values"]:
            each["value"] = 0.61
        for each in arm["measures"]["accuracy"]["values"]:
            each["value"] -= 0.8
    content["measures"]["loss"] = "terms/next_token"
    page = write(tmp_path, content)
    assert '<span class="v">0.610</span>' in page and "In percent" not in section(page, "loss")
    assert "In percent" in section(page, "accuracy") and 'class="plot"' not in section(page, "accuracy")
    content["measures"]["loss"], content["losses"] = "valued/next_token", ["loss"]
    assert '<span class="v">0.610</span>' in write(tmp_path, content)
    content["losses"] = []
    assert '<span class="v">61.0</span>' in write(tmp_path, content)


def test_the_base_is_the_arm_of_that_name_wherever_it_is(tmp_path):
    content = ablation()
    content["arms"][0], content["arms"][1] = content["arms"][1], content["arms"][0]
    content["arms"][1]["cost"]["steps"] = 250
    page = write(tmp_path, content)
    assert "no-token (base)" not in page and page.count("reference</span>") == 4
    assert "\u00d7 2.00" in page.split("What a run cost")[1].split("</table>")[0]


def test_a_measure_that_runs_lack_is_named(tmp_path):
    content = ablation()
    content["arms"][1]["measures"]["accuracy"]["values"].pop()
    for arm in content["arms"]:
        arm["measures"]["loss"] = {"values": [], "difference": None}
    warnings = (write(tmp_path, content), grid_page(tmp_path).warnings)[1]
    assert "Not all runs have the figure (equal steps): accuracy of no-token (2 of 3)." in warnings
    assert "loss: no run has the figure terms.next_token." in warnings


@pytest.mark.parametrize(
    ("place", "value"), [("high", None), ("low", "x"), ("value", 1e308), ("difference", {"value": 1e308, "low": -1e308, "high": 1e308})]
)  # fmt: skip
def test_odd_numbers_have_a_page(tmp_path, place, value):
    content = ablation()
    content["arms"][1]["measures"]["accuracy"][place] = value
    assert "no-token" in write(tmp_path, content)
