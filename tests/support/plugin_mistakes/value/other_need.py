"""Reads a need that it does not declare."""

from dataclasses import dataclass

from lmmkit.api import HiddenAt, Loss, Select, hookimpl

WHERE = "mistake.value"
CODE = "plugin/raised"


@dataclass(frozen=True, kw_only=True)
class Mistake(Loss):
    @property
    def needs(self):
        return (HiddenAt(Select(supervised=True)),)

    def value(self, ctx):
        return ctx[HiddenAt(Select(kind="image"))].float().sum()


@hookimpl
def lmmkit_components():
    return {"mistake": Mistake}
