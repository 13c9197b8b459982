"""Selects a view that no task makes."""

from dataclasses import dataclass

from lmmkit.api import HiddenAt, Loss, Select, hookimpl

WHERE = "plugins.mistake"
CODE = "plan/no-view"


@dataclass(frozen=True, kw_only=True)
class Mistake(Loss):
    @property
    def needs(self):
        return (HiddenAt(Select(view="mian", supervised=True)),)

    def value(self, ctx):
        return ctx[self.needs[0]].float().sum()


@hookimpl
def lmmkit_components():
    return {"mistake": Mistake}
