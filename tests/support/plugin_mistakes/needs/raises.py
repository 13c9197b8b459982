"""Reads a setting that does not exist."""

from dataclasses import dataclass

from lmmkit.api import HiddenAt, Loss, Select, hookimpl

WHERE = "mistake.needs"
CODE = "plugin/raised"


@dataclass(frozen=True, kw_only=True)
class Mistake(Loss):
    @property
    def needs(self):
        return (HiddenAt(Select(role=self.where)),)

    def value(self, ctx):
        return ctx[self.needs[0]].float().sum()


@hookimpl
def lmmkit_components():
    return {"mistake": Mistake}
