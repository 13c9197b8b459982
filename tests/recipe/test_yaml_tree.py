"""YAML itself: what a scalar means, what is refused, and that each key keeps its line."""

import pytest

from lmmkit.errors import UserError
from lmmkit.recipe import read_recipe, read_text
from lmmkit.recipe.yaml_tree import parse, scalar_value
from tests.support.example_recipes import PRETRAINED, SCRATCH


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1e-4", 1e-4),
        ("2e-5", 2e-5),
        ("1.0e-3", 1e-3),
        ("1E4", 1e4),
        (".5", 0.5),
        ("-1e+5", -1e5),
        ("3", 3),
        ("010", 10),
        ("0o10", 8),
        ("0x1F", 31),
        ("+1", 1),
        ("no", "no"),
        ("yes", "yes"),
        ("on", "on"),
        ("Off", "Off"),
        ("n", "n"),
        ("true", True),
        ("FALSE", False),
        ("12:30", "12:30"),
        ("190:20:30.15", "190:20:30.15"),
        ("2001-01-01", "2001-01-01"),
        ("1_000", "1_000"),
        ("0b11", "0b11"),
        ("1e", "1e"),
        ("e3", "e3"),
        ("=", "="),
        ("~", None),
        ("", None),
        ("null", None),
        (".inf", float("inf")),
        ("-.INF", float("-inf")),
        ("NaN", "NaN"),
        ("1" * 30, 1e30 / 9),
    ],
)
def test_plain_scalars_follow_the_core_schema(text, value):
    got = scalar_value(text)
    assert type(got) is type(value)
    assert got == (pytest.approx(value) if isinstance(value, float) else value)


@pytest.mark.parametrize(
    ("text", "code", "line"),
    [
        ("a: 1\nb: 2\na: 3\n", "duplicate-key", 3),
        ("a: {b: 1, c: 2, b: 3}\n", "duplicate-key", 1),
        ("a: &x 1\n", "anchor", 1),
        ("a: &x {b: 1}\nc: *x\n", "anchor", 2),
        ("a: &x {b: 1}\nc:\n  <<: *x\n", "anchor", 3),
        ("a: !!str 3\n", "tag", 1),
        ("a: !!python/object/apply:os.system ['true']\n", "tag", 1),
        ("a: !include other.yaml\n", "tag", 1),
        ("%YAML 1.1\n---\na: no\n", "yaml", 2),
        ("a: 1\n---\nb: 1\n", "yaml", 2),
        ("a:\n\tb: 1\n", "yaml", 2),
        ("a: [1, 2\nb: 3\n", "yaml", 2),
        ("? [a]\n: 1\n", "yaml", 1),
        ('a: "\\ud800"\n', "", 1),
        ("a: " + "[" * 60 + "]" * 60, "yaml", 1),
        ("a: \x00\n", "yaml", None),
        ("[" * 100_000, "yaml", 1),
    ],
)
def test_traps_are_problems_with_a_line(text, code, line):
    with pytest.raises(UserError) as raised:
        read_text(text, name="r.yaml")
    problems = [p for p in raised.value.problems if p.code == f"recipe/{code}" or not code]
    assert problems
    if line is not None:
        assert any(p.where.startswith(f"r.yaml:{line}:") for p in problems), problems


def test_an_alias_bomb_stays_small():
    lines = ["a0: &a0 [x, x]"] + [f"a{i}: &a{i} [*a{i - 1}, *a{i - 1}]" for i in range(1, 30)]
    tree = parse("\n".join(lines), "r.yaml")
    assert tree.value["a29"] == [None, None]


def test_duplicates_keep_the_first_and_the_rest_is_still_checked():
    text = SCRATCH.replace("seed: 7", "seed: 7\nseed: 8\nspede: {}")
    with pytest.raises(UserError) as raised:
        read_text(text, name="r.yaml")
    assert [(p.code, p.where) for p in raised.value.problems] == [
        ("recipe/duplicate-key", "r.yaml:3:1 seed"),
        ("recipe/unknown-key", "r.yaml:4:1 spede"),
    ]
    assert "Did you mean `speed`?" in raised.value.problems[1].hint


def test_places_name_every_key_and_fall_back_to_the_parent():
    recipe = read_text(PRETRAINED, name="r.yaml")
    assert recipe.where("seed") == "r.yaml:3:1 seed"
    assert recipe.where("plugins.image_order.grid") == "r.yaml:13:20 plugins.image_order.grid"
    assert recipe.where("plugins.image_order.gird") == "r.yaml:13:3 plugins.image_order.gird"
    assert recipe.where("evaluate.controls.1") == "r.yaml:36:62 evaluate.controls.1"


@pytest.mark.parametrize(
    "make",
    [
        lambda d: d / "missing.yaml",
        lambda d: d,
        lambda d: d / "nul\0byte",
        lambda d: _write(d / "latin.yaml", b"a: 1\nb: caf\xe9\n"),
        lambda d: _write(d / "big.yaml", b"#" * 1_000_001),
        lambda d: _write(d / "empty.yaml", b""),
        lambda d: _write(d / "comment.yaml", b"# nothing\n"),
        lambda d: _write(d / "list.yaml", b"- 1\n"),
        lambda d: _write(d / "word.yaml", b"word\n"),
        lambda d: _write(d / "png.yaml", b"\x89PNG\r\n\x1a\n"),
        lambda d: _write(d / "utf16.yaml", "a: 1".encode("utf-16")),
    ],
)
def test_files_that_are_no_recipe(tmp_path, make):
    path = make(tmp_path)
    with pytest.raises(UserError) as raised:
        read_recipe(path)
    assert all(problem.where.startswith(str(path)) for problem in raised.value.problems)


def _write(path, data):
    path.write_bytes(data)
    return path


def test_a_byte_order_mark_and_windows_lines_are_fine(tmp_path):
    path = tmp_path / "r.yaml"
    path.write_bytes(b"\xef\xbb\xbf" + SCRATCH.replace("\n", "\r\n").encode())
    assert read_recipe(path) == read_text(SCRATCH)


def test_a_text_that_is_read_again_gives_a_tree_of_its_own():
    text = "a: {b: [1, 2]}\na: 3\n"
    first, same = parse(text, "x.yaml"), parse(text, "x.yaml")
    assert first == same and parse(text, "y.yaml").places["a"] == "y.yaml:1:1"
    first.value["a"]["b"].append(3)
    first.places.clear()
    first.problems.clear()
    assert parse(text, "x.yaml") == same != first
