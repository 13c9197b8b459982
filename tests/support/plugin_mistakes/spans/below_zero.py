"""Gives words a weight below 0."""

from dataclasses import dataclass

from lmmkit.api import TokenWeight, hookimpl

WHERE = "mistake.spans"
CODE = "plugin/weights"


@dataclass(frozen=True, kw_only=True)
class Mistake(TokenWeight):
    def spans(self, sample, text):
        return [(0, len(text), -1.0)]


@hookimpl
def lmmkit_components():
    return {"mistake": Mistake}
