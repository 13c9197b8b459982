"""Text-order reconstruction: the model writes a sentence whose words it is given in random order."""

import math
from collections import Counter
from dataclasses import dataclass, replace
from typing import ClassVar

import numpy as np

from lmmkit.api import AuxTask, Puzzle, Sample, Turn, View


@dataclass(frozen=True, kw_only=True)
class TextOrder(AuxTask):
    """Asks for the first response that is learned, given its shuffled words and the image; the loss is next-token.

    Words are separated by white space and keep their punctuation and case. The original order is never
    used: it is drawn again. A response of fewer than two distinct words is skipped.
    """

    instruction: str = "Re-order the sentence to represent the information of the image:"
    text_loss: ClassVar[bool] = True

    def views(self, sample: Sample, rng: np.random.Generator) -> list[View]:
        learned = [turn for turn in sample.turns if turn.role == "assistant" and turn.supervised]
        words = learned[0].text.split() if learned else []
        if len(set(words)) < 2:
            return []
        shuffled = words
        while shuffled == words:
            shuffled = [words[i] for i in rng.permutation(len(words))]
        question = Turn("user", f"{self.instruction} {' '.join(shuffled)}", images=len(sample.images))
        return [View(sample=replace(sample, turns=(question, learned[0])), supervision="train")]

    def score(self, view: View, text: str) -> tuple[float, float]:
        wanted = view.sample.turns[1].text.split()
        repeats = math.prod(math.factorial(n) for n in Counter(wanted).values())
        return float(text.split() == wanted), repeats / math.factorial(len(wanted))

    def text_puzzle(self, view: View, text: str) -> Puzzle:
        question, answer = (turn.text.removeprefix(self.instruction) for turn in view.sample.turns)
        shuffled, predicted, gold = (tuple(each.split()) for each in (question, text, answer))
        return Puzzle(shuffled=shuffled, predicted=predicted, gold=gold, chance=self.score(view, text)[1])
