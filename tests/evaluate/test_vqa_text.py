"""Short answers are normalised and scored as the official code does, which is written out here in plain loops."""

from __future__ import annotations

import random
import re
from fractions import Fraction
from functools import cache

import pytest

from lmmkit.evaluate.vqa_text import (
    m4c,
    m4c_accuracy,
    m4c_scores,
    vqa_eval,
    vqa_eval_accuracy,
)

# answer, by m4c, by vqa_eval if different
VECTORS = [
    ("The Dog.", "dog", None), ("Two", "2", None), ("1,000", "1000", None), ("3.", "3", None),
    ("3.5", "3.5", None), ("1.5.", "1.5", None), ("red, white", "red white", None), ("two, three", "2 3", None),
    ("dont", "don't", None), ("oclock", "o'clock", None), ("its", "its", None), ("U.S.", "us", None),
    ("mr. t", "mr t", None), ("t-shirt", "t shirt", None), ("a-b", "b", None), ("a/c", "c", None),
    ("hot dog - stand", "hot dog stand", None), ("10-12", "10 12", None), ("08/13/2011", "08 13 2011", None),
    ("10:30", "10:30", None), ("$5", "$5", None), ("100%", "100%", None), ("#1", "#1", None),
    ("none", "0", None), ("a", "", None), ("somebody'd", "somebodyd", None), ("it's", "it 's", "it's"),
    ("let's go", "let 's go", "let's go"), ("a,b", "ab", "b"), ("5,a", "5a", "5"),
    ("  Yes\n", "yes", None), ("on\tthe\ntable", "on table", None), ("YALL'D'VE", "y'all'd've", None),
]  # fmt: skip

SHORT = """aint arent cant couldve couldnt couldn'tve couldnt've didnt doesnt dont hadnt hadnt've hadn'tve hasnt havent
hed hed've he'dve hes howd howll hows Id've I'dve Im Ive isnt itd itd've it'dve itll let's maam mightnt mightnt've
mightn'tve mightve mustnt mustve neednt notve oclock oughtnt ow's'at 'ows'at 'ow'sat shant shed've she'dve she's shouldve
shouldnt shouldnt've shouldn'tve somebody'd somebodyd've somebody'dve somebodyll somebodys someoned someoned've
someone'dve someonell someones somethingd somethingd've something'dve somethingll thats thered thered've there'dve
therere theres theyd theyd've they'dve theyll theyre theyve twas wasnt wed've we'dve weve werent whatll whatre whats
whatve whens whered wheres whereve whod whod've who'dve wholl whos whove whyll whyre whys wont wouldve wouldnt
wouldnt've wouldn'tve yall yall'll y'allll yall'd've y'alld've y'all'dve youd youd've you'dve youll youre youve"""
LONG = """ain't aren't can't could've couldn't couldn't've couldn't've didn't doesn't don't hadn't hadn't've hadn't've hasn't
haven't he'd he'd've he'd've he's how'd how'll how's I'd've I'd've I'm I've isn't it'd it'd've it'd've it'll let's ma'am
mightn't mightn't've mightn't've might've mustn't must've needn't not've o'clock oughtn't 'ow's'at 'ow's'at 'ow's'at
shan't she'd've she'd've she's should've shouldn't shouldn't've shouldn't've somebodyd somebody'd've somebody'd've
somebody'll somebody's someone'd someone'd've someone'd've someone'll someone's something'd something'd've something'd've
something'll that's there'd there'd've there'd've there're there's they'd they'd've they'd've they'll they're they've
'twas wasn't we'd've we'd've we've weren't what'll what're what's what've when's where'd where's where've who'd who'd've
who'd've who'll who's who've why'll why're why's won't would've wouldn't wouldn't've wouldn't've y'all y'all'll y'all'll
y'all'd've y'all'd've y'all'd've you'd you'd've you'd've you'll you're you've"""
OFFICIAL = dict(zip(SHORT.split(), LONG.split(), strict=True))
DIGITS = {"none": "0", "zero": "0", "one": "1", "two": "2", "three": "3", "four": "4", "five": "5", "six": "6",
          "seven": "7", "eight": "8", "nine": "9", "ten": "10"}  # fmt: skip
MARKS = [
    ";",
    "/",
    "[",
    "]",
    '"',
    "{",
    "}",
    "(",
    ")",
    "=",
    "+",
    "\\",
    "_",
    "-",
    ">",
    "<",
    "@",
    "`",
    ",",
    "?",
    "!",
]


def plain_steps(text: str, comma: str) -> str:
    """Follows the official steps one by one: marks in order, periods, words."""
    out = text
    for mark in MARKS:
        if mark + " " in text or " " + mark in text or re.search(comma, text) is not None:
            out = out.replace(mark, "")
        else:
            out = out.replace(mark, " ")
    found, gone = "", 0
    for i, c in enumerate(out):
        if c == "." and gone < 32 and not out[i + 1 : i + 2].isdecimal():
            gone += 1
        else:
            found += c
    words = [DIGITS.get(word, word) for word in found.lower().split()]
    return " ".join(OFFICIAL.get(word, word) for word in words if word not in ("a", "an", "the"))


@cache
def plain_m4c(text: str) -> str:
    text = text.lower()
    for old, new in ((",", ""), ("?", ""), ("'s", " 's")):
        text = text.replace(old, new)
    text = text.strip().replace("\n", " ").replace("\t", " ").strip()
    return plain_steps(text, r"(?<=\d)(\,)+(?=\d)")


@cache
def plain_vqa_eval(text: str) -> str:
    return plain_steps(text.replace("\n", " ").replace("\t", " ").strip(), r"(\d)(\,)(\d)")


def plain_soft(answer: str, humans: list[str]) -> float:
    """Counts, for each human, the others who gave the answer."""
    thirds = 0
    for i in range(len(humans)):
        matches = 0
        for j in range(len(humans)):
            if j != i and humans[j] == answer:
                matches += 1
        thirds += min(3, matches)
    return float(Fraction(thirds, 3 * len(humans)))


PIECES = ["a", "the", "two", "none", "dont", "it's", "yes", "No", "10", "1,000", "3.5", ".", "..", ", ", ",", "-", " - ", "?",
          "!", "/", "'s", "'", " ", "\n", "\t", "Ünï", "(x)", "somebody'd", "im", "t-shirt", "5.", "$", ":", "\u2028", "٣"]  # fmt: skip


def random_answers(seed: int, n: int) -> list[str]:
    draw = random.Random(seed)
    return [
        (" " if draw.random() < 0.5 else "").join(draw.choices(PIECES, k=draw.randint(0, 5)))
        for _ in range(n)
    ]


@pytest.mark.parametrize("answer, by_m4c, by_vqa_eval", VECTORS)
def test_answers_are_normalised_as_officially(answer, by_m4c, by_vqa_eval):
    assert m4c(answer) == by_m4c
    assert vqa_eval(answer) == (by_m4c if by_vqa_eval is None else by_vqa_eval)


def test_the_contractions_are_the_official_ones():
    assert len(OFFICIAL) == 120
    for short, long in OFFICIAL.items():
        assert vqa_eval(short) == (short.lower() if short[0] == "I" else long), (
            "lower-cased before the look-up"
        )
    for word in ("its", "well", "ill", "were", "wed", "shed", "id"):
        assert vqa_eval(word) == word


def test_only_the_first_32_periods_go():
    assert m4c("a" + "." * 40 + "b") == "a" + "." * 8 + "b"


def test_random_answers_are_normalised_as_the_plain_steps_do():
    answers = random_answers(1, 10_000)
    assert [m4c(a) for a in answers] == [plain_m4c(a) for a in answers]
    assert [vqa_eval(a) for a in answers] == [plain_vqa_eval(a) for a in answers]


@pytest.mark.parametrize("k, score", [(0, 0.0), (1, 0.3), (2, 0.6), (3, 0.9), (4, 1.0), (7, 1.0), (10, 1.0)])
def test_the_closed_form(k, score):
    assert m4c_accuracy("x", ["x"] * k + ["y"] * (10 - k)) == score
    assert vqa_eval_accuracy("x", ["x"] * k + ["y"] * (10 - k)) == score


def test_random_answer_sets_are_scored_as_the_plain_loops_do():
    draw = random.Random(2)
    pool = random_answers(3, 400)
    for _ in range(10_000):
        humans = draw.choices(draw.choices(pool, k=draw.randint(1, 6)), k=10)
        answer = draw.choice([*humans, draw.choice(pool)])
        assert m4c_accuracy(answer, humans) == plain_soft(plain_m4c(answer), [*map(plain_m4c, humans)])

        answer, humans = (plain_trim(answer), [plain_trim(h) for h in humans])
        ours = vqa_eval_accuracy(answer, humans)
        if any(human != humans[0] for human in humans):
            answer, humans = plain_vqa_eval(answer), [plain_vqa_eval(human) for human in humans]
        assert ours == plain_soft(answer, humans)


def plain_trim(text: str) -> str:
    return text.replace("\n", " ").replace("\t", " ").strip()


def test_the_official_evaluation_normalises_only_where_humans_differ():
    assert vqa_eval_accuracy("Yes", ["yes"] * 10) == 0.0
    assert vqa_eval_accuracy("yes\n", ["yes"] * 10) == 1.0
    assert vqa_eval_accuracy("Yes.", ["yes"] * 9 + ["no"]) == 1.0
    assert vqa_eval_accuracy("The dog", ["a dog"] * 5 + ["dog."] * 5) == 1.0
    assert m4c_accuracy("Yes", ["yes"] * 10) == 1.0


def test_the_scores_of_all_answers_of_a_question():
    assert m4c_scores(["Yes", "yes."] + ["no"] * 7 + ["red"]) == {"yes": 0.6, "no": 1.0, "red": 0.3}
    draw, pool = random.Random(4), random_answers(5, 300)
    for _ in range(1000):
        humans = draw.choices(draw.choices(pool, k=draw.randint(1, 6)), k=10)
        forms = [plain_m4c(human) for human in humans]
        assert m4c_scores(humans) == {form: plain_soft(form, forms) for form in forms}
