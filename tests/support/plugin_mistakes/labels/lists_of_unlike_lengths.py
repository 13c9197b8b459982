"""Gives lists of unlike lengths."""

from dataclasses import dataclass

from lmmkit.api import HiddenAt, Loss, Select, hookimpl

WHERE = "mistake.labels"
CODE = "plugin/label"


@dataclass(frozen=True, kw_only=True)
class Mistake(Loss):
    needs = (HiddenAt(Select(supervised=True)),)

    def value(self, ctx):
        return ctx[self.needs[0]].float().square().sum()

    def labels(self, sample, dims):
        return {"boxes": [[1, 2], [3]]}


@hookimpl
def lmmkit_components():
    return {"mistake": Mistake}
