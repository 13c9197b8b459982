"""Remembers in the sample that it was asked."""

from dataclasses import dataclass

from lmmkit.api import TokenWeight, hookimpl

WHERE = "mistake.spans"
CODE = "plugin/in-place"


@dataclass(frozen=True, kw_only=True)
class Mistake(TokenWeight):
    def spans(self, sample, text):
        sample.meta["asked"] = 1
        return [(0, len(text), 2.0)]


@hookimpl
def lmmkit_components():
    return {"mistake": Mistake}
