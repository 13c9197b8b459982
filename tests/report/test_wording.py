"""Numbers on a page: one form for each kind."""

from __future__ import annotations

import pytest

from lmmkit.report import wording


@pytest.mark.parametrize(
    ("share", "text"),
    [(0.0031, "+0.3"), (-0.0172, "\u22121.7"), (0.0004, "0.0"), (-0.0004, "0.0"), (1, "+100.0")],
)
def test_points_have_a_sign_unless_they_are_zero(share, text):
    assert wording.in_points(share) == text


@pytest.mark.parametrize(
    ("share", "text"),
    [(0.7824, "78.2"), (1, "100.0"), (0, "0.0"), (None, "\u2013"), (-0.006, "\u22120.6"), (-0.0004, "0.0")],
)
def test_percent_has_one_digit_after_the_point(share, text):
    assert wording.in_percent(share) == text


@pytest.mark.parametrize(
    ("number", "text"),
    [
        (0, "0"),
        (1234.5, "1,234"),
        (0.00012, "1.2e\u221204"),
        (-3.14159, "\u22123.142"),
        (31.4159, "31.4"),
        (None, "\u2013"),
    ],
)
def test_plain_numbers_have_about_four_digits(number, text):
    assert wording.plain_number(number) == text


def test_a_difference_of_numbers_has_its_sign():
    assert [wording.signed_number(v) for v in (0.5, -0.5, 0.0)] == ["+0.500", "\u22120.500", "0"]


@pytest.mark.parametrize(
    ("n", "text"),
    [(999, "999"), (1_674_000, "1.67 M"), (16_400, "16 k"), (7.06e9, "7.06 G"), (None, "\u2013")],
)
def test_counts_are_short(n, text):
    assert wording.in_words_of_size(n) == text


@pytest.mark.parametrize(
    ("ratio", "text"),
    [(2.2349, "\u00d7 2.23"), (1.002, "+0.2 %"), (0.99, "\u22121.0 %"), (0.5, "\u00d7 0.50")],
)
def test_ratios_near_one_are_changes(ratio, text):
    assert wording.as_ratio(ratio) == text


def test_lists():
    assert [wording.in_words(["a", "b", "c"][:n]) for n in range(4)] == ["", "a", "a and b", "a, b and c"]


def test_an_interval_has_both_ends_or_none():
    assert wording.ends_of({"low": 1, "high": 2.5}) == (1.0, 2.5)
    for value in ({"low": 1}, {"high": 1, "low": None}, {"low": "1", "high": 2}, {}):
        assert wording.ends_of(value) == (None, None)


def test_a_name_has_no_characters_that_do_not_show():
    assert wording.shown_name("größe 日本") == "größe 日本"
    assert wording.shown_name("a\u202eb\x1b[1m\n") == "a\ufffdb\ufffd[1m\ufffd"
