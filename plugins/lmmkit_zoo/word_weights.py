"""Weights of words (`loss_scale` of SWIFT, arXiv 2408.05517): chosen words and patterns of answers count more, or less.

Simplified: a word is weighted wherever it occurs in an answer, while SWIFT can also weight what follows a keyword in
the form of an agent's calls.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass

from lmmkit.api import Dims, Sample, TokenWeight, hookimpl


@dataclass(frozen=True, kw_only=True)
class WordWeights(TokenWeight):
    """Weights the tokens of words; where several apply, they are multiplied.

    words: words or phrases, each with its weight, in upper or lower case, and not within another word.
    patterns: the same of regular expressions.
    """

    words: tuple[tuple[str, float], ...]
    patterns: tuple[tuple[str, float], ...] = ()

    def check(self, dims: Dims) -> str:
        if not all(word for word, _ in self.words):
            return "words: an empty word"
        for key, weights in (("words", self.words), ("patterns", self.patterns)):
            for name, weight in weights:
                if not 0 <= weight < float("inf"):
                    return f"{key}: {weight} for {name!r}, which is not 0 or more"
        for pattern, _ in self.patterns:
            try:
                re.compile(pattern)
            except re.error as error:
                return f"patterns: {pattern!r}, which is no regular expression ({error})"
        return ""

    def spans(self, sample: Sample, text: str) -> Sequence[tuple[int, int, float]]:
        words = [(rf"(?i)(?<!\w){re.escape(word)}(?!\w)", weight) for word, weight in self.words]
        return [
            (match.start(), match.end(), weight)
            for pattern, weight in (*words, *self.patterns)
            for match in re.finditer(pattern, text)
        ]


@hookimpl
def lmmkit_components():
    return {"word_weights": WordWeights}
