"""Normalises short answers as the VQA evaluations do, and scores them against ten human answers.

There are two processors. `m4c` is that of TextVQA and of answers for a test server; `vqa_eval` is that of the
official VQA evaluation. The rules and the list of contractions are those of the VQA evaluation code of
Agrawal et al. (https://github.com/GT-Vision-Lab/VQA, BSD-2-Clause).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from functools import cache, lru_cache

from lmmkit.data.sources.joined.official_forms import ASK_SHORT as ASK_SHORT

_NUMBERS = {
    "zero": "0", "none": "0", "one": "1", "two": "2", "three": "3", "four": "4", "five": "5", "six": "6",
    "seven": "7", "eight": "8", "nine": "9", "ten": "10",
}  # fmt: skip
_ARTICLES = frozenset(("a", "an", "the"))
_MARKS = frozenset(';/[]"{}()=+\\_-><@`,?!')
_DIGIT_COMMA = re.compile(r"\d,\d")
_PERIOD = re.compile(r"\.(?!\d)")
_MOST_PERIODS = (
    32  # the official code passes re.UNICODE, which is 32, where the number of replacements belongs
)

# A word that lacks one apostrophe of these gets it. Other contractions ("it's", "we'll") are not in the list.
_CONTRACTIONS = """
ain't aren't can't could've couldn't couldn't've didn't doesn't don't hadn't hadn't've hasn't haven't he'd he'd've
he's how'd how'll how's isn't it'd it'd've it'll ma'am mightn't mightn't've might've mustn't must've needn't not've
o'clock oughtn't 'ow's'at shan't she'd've should've shouldn't shouldn't've somebody'd've somebody'll somebody's
someone'd someone'd've someone'll someone's something'd something'd've something'll that's there'd there'd've
there're there's they'd they'd've they'll they're they've 'twas wasn't we'd've we've weren't what'll what're what's
what've when's where'd where's where've who'd who'd've who'll who's who've why'll why're why's won't would've
wouldn't wouldn't've y'all y'all'll y'all'd've you'd you'd've you'll you're you've
"""
_APOSTROPHES = {
    word[:i] + word[i + 1 :]: word for word in _CONTRACTIONS.split() for i, c in enumerate(word) if c == "'"
}
_APOSTROPHES["somebody'd"] = "somebodyd"  # the official list has these two the wrong way round
_WORDS = {**_NUMBERS, **_APOSTROPHES}


@lru_cache(maxsize=2**19)
def m4c(answer: str) -> str:
    """Returns an answer as the processor of M4C and EvalAI normalises it."""
    return _normal(answer.lower().replace(",", "").replace("?", "").replace("'s", " 's").strip())


@lru_cache(maxsize=2**19)
def vqa_eval(answer: str) -> str:
    """Returns an answer as the official VQA evaluation normalises it."""
    return _normal(answer)


def m4c_scores(humans: Sequence[str]) -> dict[str, float]:
    """Returns the soft accuracy of each answer of a human, normalised by `m4c`; any other answer has 0."""
    times: dict[str, int] = {}
    for human in dict.fromkeys(humans):
        form = m4c(human)
        times[form] = times.get(form, 0) + humans.count(human)
    return {form: _soft(same, len(humans)) for form, same in times.items()}


def m4c_accuracy(answer: str, humans: Sequence[str]) -> float:
    """Returns the soft accuracy with both sides normalised by `m4c`, as TextVQA is scored."""
    return _soft(_same(m4c, m4c(answer), humans), len(humans))


def vqa_eval_accuracy(answer: str, humans: Sequence[str]) -> float:
    """Returns the accuracy of the official VQA evaluation.

    It normalises both sides only if the humans do not all agree: else "Yes" is not "yes".
    """
    normal = vqa_eval if len({_trimmed(human) for human in set(humans)}) > 1 else _trimmed
    return _soft(_same(normal, normal(answer), humans), len(humans))


def _same(normal: Callable[[str], str], answer: str, humans: Sequence[str]) -> int:
    """Returns how many humans gave a normalised answer. Each of their texts is normalised once."""
    return sum(humans.count(human) for human in set(humans) if normal(human) == answer)


@cache
def _soft(same: int, n: int) -> float:
    """Returns the soft accuracy of an answer that `same` of `n` humans gave."""
    return (same * min(3, same - 1) + (n - same) * min(3, same)) / (3 * n)


def _normal(answer: str) -> str:
    """Trims, removes marks, and changes words."""
    if answer.isalnum():  # one word, as most answers are: there is nothing to trim or to remove
        word = answer.lower()
        return "" if word in _ARTICLES else _WORDS.get(word, word)
    words = _without_marks(_trimmed(answer)).lower().split()
    return " ".join([_WORDS.get(word, word) for word in words if word not in _ARTICLES])


def _trimmed(answer: str) -> str:
    return answer.replace("\n", " ").replace("\t", " ").strip()


def _without_marks(text: str) -> str:
    """Removes each mark that touches a space somewhere, replaces the others by spaces, and removes periods."""
    out = text
    if marks := _MARKS.intersection(text):
        all_go = "," in marks and _DIGIT_COMMA.search(text) is not None
        for mark in marks:
            goes = all_go or f"{mark} " in text or f" {mark}" in text
            out = out.replace(mark, "" if goes else " ")
    if "." not in out:
        return out
    if out.find(".") == len(out) - 1:  # one, at the end
        return out[:-1]
    return _PERIOD.sub("", out, count=_MOST_PERIODS)
