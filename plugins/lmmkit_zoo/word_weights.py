"""Weights of words (`loss_scale` of SWIFT, arXiv 2408.05517): chosen words and patterns of answers count more, or less.

Simplified: a word is weighted wherever it occurs in an answer, while SWIFT can also weight what follows a keyword in
the form of an agent's calls.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from lmmkit.api import Dims, Sample, TokenWeight, hookimpl


@dataclass(frozen=True, kw_only=True)
class WordWeights(TokenWeight):
    """Weights the tokens of words; where several apply, they are multiplied.

    words: the weight of each word or phrase, in upper or lower case, and not within another word.
    patterns: the same of regular expressions.
    """

    words: Mapping[str, float]
    patterns: Mapping[str, float] = field(default_factory=dict)

    def check(self, dims: Dims) -> str:
        if not all(self.words):
            return "words: an empty word"
        for key, weights in (("words", self.words), ("patterns", self.patterns)):
            for name, weight in weights.items():
                if not 0 <= weight < float("inf"):
                    return f"{key}: {weight} for {name!r}, which is not 0 or more"
        for pattern in self.patterns:
            try:
                re.compile(pattern)
            except re.error as error:
                return f"patterns: {pattern!r}, which is no regular expression ({error})"
        return ""

    def spans(self, sample: Sample, text: str) -> Sequence[tuple[int, int, float]]:
        words = {rf"(?i)(?<!\w){re.escape(word)}(?!\w)": weight for word, weight in self.words.items()}
        return [
            (match.start(), match.end(), weight)
            for pattern, weight in (*words.items(), *self.patterns.items())
            for match in re.finditer(pattern, text)
        ]


@hookimpl
def lmmkit_components():
    return {"word_weights": WordWeights}
