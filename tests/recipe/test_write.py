"""Writing, fingerprints, overrides, differences, and a fuzz over all of it."""

import random
import subprocess
import sys

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from lmmkit.errors import UserError
from lmmkit.recipe import (
    ABSENT,
    diff,
    digest,
    dump,
    flow_text,
    from_mapping,
    read_recipe,
    read_text,
    section_class,
    to_mapping,
)
from lmmkit.recipe.yaml_tree import parse
from tests.support.example_recipes import PRETRAINED, SCRATCH


@pytest.mark.parametrize("text", [PRETRAINED, SCRATCH])
def test_a_dump_reads_back_equal(text):
    recipe = read_text(text)
    again = read_text(dump(recipe))
    assert again == recipe and digest(again) == digest(recipe) and diff(again, recipe) == []
    assert dump(again) == dump(recipe)
    assert from_mapping(to_mapping(recipe)) == recipe


plain = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**63 - 1)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(st.characters(exclude_categories=["Cs"]), max_size=12)
    | st.sampled_from(["no", "1e-4", "1_0", "=", "<<", "null", "~", "0b1", "- a", "a: b", "'"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text("ab<1=", max_size=3), inner),
    max_leaves=6,
)


@settings(max_examples=25, deadline=None)
@given(plain)
@example("a\x85b")
@example("\u2028")
@example(" \u2029 ")
def test_plugin_settings_survive_a_dump(value):
    raw = parse(SCRATCH, "r.yaml").value
    raw["plugins"]["order"]["grid"] = value
    recipe = from_mapping(raw)
    again = read_text(dump(recipe))
    assert diff(again, recipe) == [] and digest(again) == digest(recipe)


def test_a_value_that_python_takes_for_another_or_that_has_changed_is_written_as_it_is():
    for value, text in (
        (1, "1"),
        (True, "true"),
        (1.0, "1.0"),
        ([0], "[0]"),
        ([False], "[false]"),
        ([-0.0], "[-0.0]"),
    ):
        assert flow_text(value) == text
    changing = {"a": [1], "b": 2}
    assert flow_text(changing) == "{a: [1], b: 2}" == flow_text({"a": [1], "b": 2})
    changing["a"].append(3)
    assert flow_text(changing) == "{a: [1, 3], b: 2}"
    assert flow_text({"b": 2, "a": [1]}) == "{b: 2, a: [1]}", "the order is part of a recipe"


def test_a_digest_is_about_mathematics_and_data():
    recipe = read_text(SCRATCH)
    layout = read_text("# a comment\n" + dump(recipe), root="/elsewhere")
    assert digest(layout) == digest(recipe)
    for same in ("speed.tokens=4096", "output.keep=5", "evaluate.controls=[]"):
        assert digest(read_text(SCRATCH, overrides=[same])) == digest(recipe)
    others = ("seed=8", "plugins.order.grid=5", "data.scenes.records=b.json", "format=1")
    changed = [digest(read_text(SCRATCH, overrides=[other])) != digest(recipe) for other in others]
    assert changed == [True, True, True, False]


def test_a_difference_knows_its_class():
    a = read_text(SCRATCH)
    b = read_text(
        SCRATCH,
        overrides=[
            "seed=8",
            "data.scenes.images=b",
            "speed.tokens=1",
            "output.keep=9",
            "evaluate.controls=[swapped]",
            "plugins.order.grid=4.0",
            "stages.only.losses.next_token=1",
            "plugins.more={}",
        ],
    )
    found = {d.key: (d.section_class, d.a, d.b) for d in diff(a, b)}
    assert found == {
        "seed": ("mathematics", 7, 8),
        "plugins.order.grid": ("mathematics", 4, 4.0),
        "plugins.more": ("mathematics", ABSENT, {}),
        "data.scenes.images": ("data", "images", "b"),
        "stages.only.losses.next_token": ("mathematics", {"weight": 1.0, "watch": True}, 1.0),
        "evaluate.controls": ("output", ["blank"], ["swapped"]),
        "output.keep": ("output", 3, 9),
        "speed.tokens": ("speed", 2048, 1),
    }
    assert section_class("stages.only.validate.every") == "output"


def test_order_counts():
    raw = to_mapping(read_text(PRETRAINED))
    a = from_mapping(raw)
    raw["stages"] = dict(reversed(raw["stages"].items()))
    b = from_mapping(raw)
    assert [(d.key, d.a) for d in diff(a, b)] == [("stages", ["pretrain", "finetune"])]
    assert digest(a) != digest(b)


def test_overrides(tmp_path):
    path = tmp_path / "r.yaml"
    path.write_text(SCRATCH)
    recipe = read_recipe(
        path,
        overrides=[
            "stages.only.length={epochs: 2}",
            "plugins.order.layers=[1, 2]",
            "plugins.order.new.inner=1e-4",
            "speed.attention=sdpa",
            "data.scenes.records=a=b.json",
        ],
        root=tmp_path,
    )
    assert recipe.stages["only"].length.epochs == 2 and recipe.stages["only"].length.steps is None
    assert recipe.plugins["order"]["layers"] == [1, 2]
    assert recipe.plugins["order"]["new"] == {"inner": 1e-4}
    assert recipe.data["scenes"].records == "a=b.json"
    assert recipe.where("speed.attention") == "--set speed.attention=sdpa"
    assert recipe.where("seed") == f"{path}:2:1 seed"
    inner = "--set plugins.order.layers=[1, 2] (plugins.order.layers.0)"
    assert recipe.where("plugins.order.layers.0") == inner


@pytest.mark.parametrize(
    "override",
    ["", "=", "seed", "a..b=1", ".=1", "seed.x=1", "modle.text.width=3", "seed=[1", "seed=&a 1",
     "plugins.ordr.grid=3", "evaluate.controls.0=blank", "seed=1\nseed: 2", "seed=\x00"],
)  # fmt: skip
def test_bad_overrides_name_themselves(override):
    with pytest.raises(UserError) as raised:
        read_text(SCRATCH, overrides=[override])
    assert any(p.where.startswith(f"--set {override}") for p in raised.value.problems)


JUNK = [
    ":",
    "{",
    "}",
    "[",
    "]",
    "&a",
    "*a",
    "!x",
    "-",
    "?",
    "|",
    ">",
    "'",
    '"',
    "%",
    "@",
    "#",
    "null",
    "NaN",
    ".nan",
    "1e999",
    "-1",
    "01",
    "\u00e9",
    "\x07",
    "\\",
    "<<:",
]
JUNK += ["\t", "\n", "\n\n  ", ": ", "- "]


def test_mutated_recipes_never_trace_back():
    draw = random.Random(20240)
    accepted = 0
    for _ in range(300):
        text = draw.choice((PRETRAINED, SCRATCH))
        for _ in range(draw.randint(1, 3)):
            at, end = sorted(draw.randrange(len(text)) for _ in range(2))
            text = draw.choice(
                (
                    text[:at] + draw.choice(JUNK) + text[at:],
                    text[:at] + text[at + draw.randint(1, 6) :],
                    text[:at] + text[min(end, at + 80) :],
                    text[:at] + text[at : at + 40] + text[at:],
                )
            )
        try:
            recipe = read_text(text)
        except UserError as error:
            assert error.problems and all(p.where for p in error.problems)
        else:
            accepted += 1
            assert read_text(dump(recipe)) == recipe
    assert 0 < accepted < 200


def test_reading_needs_no_torch():
    code = "import sys, lmmkit.recipe; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_what_weights_rows_is_written_only_where_it_is_given():
    recipe = read_text(SCRATCH, overrides=["stages.only.losses.next_token={weight: 1, by: [order]}"])
    plain = read_text(SCRATCH)
    assert to_mapping(recipe)["stages"]["only"]["losses"]["next_token"] == {
        "weight": 1.0, "watch": False, "by": ["order"],
    }  # fmt: skip
    assert "by" not in dump(plain) and digest(recipe) != digest(plain)
    assert read_text(dump(recipe)) == recipe
