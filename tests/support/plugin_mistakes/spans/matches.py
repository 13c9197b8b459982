"""Gives the matches of a pattern, not their places."""

import re
from dataclasses import dataclass

from lmmkit.api import TokenWeight, hookimpl

WHERE = "mistake.spans"
CODE = "plugin/returned"


@dataclass(frozen=True, kw_only=True)
class Mistake(TokenWeight):
    def spans(self, sample, text):
        return [(match, 2.0) for match in re.finditer(r"\w+", text)]


@hookimpl
def lmmkit_components():
    return {"mistake": Mistake}
