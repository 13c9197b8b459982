"""Draws from a global generator."""

import random
from dataclasses import dataclass

from lmmkit.api import TokenWeight, hookimpl

WHERE = "mistake.spans"
CODE = "plugin/not-pure"


@dataclass(frozen=True, kw_only=True)
class Mistake(TokenWeight):
    def spans(self, sample, text):
        return [(0, len(text), random.random())]


@hookimpl
def lmmkit_components():
    return {"mistake": Mistake}
