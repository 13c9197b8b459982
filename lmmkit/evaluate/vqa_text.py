"""Normalises short answers as the VQA evaluations do, and scores them against ten human answers.

There are two processors. `m4c` is that of TextVQA and of answers for a test server; `vqa_eval` is that of the
official VQA evaluation. The rules and the list of contractions are those of the VQA evaluation code of
Agrawal et al. (https://github.com/GT-Vision-Lab/VQA, BSD-2-Clause).
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from functools import lru_cache

ASK_SHORT = "Answer the question using a single word or phrase."
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


def soft_accuracy(answer: str, humans: Sequence[str]) -> float:
    """Returns the mean, over the humans, of min(1, n / 3), where n of the others gave the answer."""
    return _soft(humans.count(answer), len(humans))


def soft_scores(humans: Sequence[str]) -> dict[str, float]:
    """Returns the soft accuracy of each answer that a human gave; any other answer has 0."""
    return {answer: _soft(same, len(humans)) for answer, same in Counter(humans).items()}


def m4c_accuracy(answer: str, humans: Sequence[str]) -> float:
    """Returns the soft accuracy with both sides normalised by `m4c`, as TextVQA is scored."""
    return soft_accuracy(m4c(answer), [m4c(human) for human in humans])


def vqa_eval_accuracy(answer: str, humans: Sequence[str]) -> float:
    """Returns the accuracy of the official VQA evaluation.

    It normalises both sides only if the humans do not all agree: else "Yes" is not "yes".
    """
    answer, humans = _trimmed(answer), [_trimmed(human) for human in humans]
    if len(set(humans)) > 1:
        answer, humans = vqa_eval(answer), [vqa_eval(human) for human in humans]
    return soft_accuracy(answer, humans)


def _soft(same: int, n: int) -> float:
    """Returns the soft accuracy of an answer that `same` of `n` humans gave."""
    return (same * min(3, same - 1) + (n - same) * min(3, same)) / (3 * n)


def _normal(answer: str) -> str:
    """Trims, removes marks, and changes words."""
    words = _without_marks(_trimmed(answer)).lower().split()
    return " ".join([_WORDS.get(word, word) for word in words if word not in _ARTICLES])


def _trimmed(answer: str) -> str:
    return answer.replace("\n", " ").replace("\t", " ").strip()


def _without_marks(text: str) -> str:
    """Removes each mark that touches a space somewhere, replaces the others by spaces, and removes periods."""
    out = text
    if marks := _MARKS.intersection(text):
        all_go = _DIGIT_COMMA.search(text) is not None
        for mark in marks:
            goes = all_go or f"{mark} " in text or f" {mark}" in text
            out = out.replace(mark, "" if goes else " ")
    return _PERIOD.sub("", out, count=_MOST_PERIODS) if "." in out else out
