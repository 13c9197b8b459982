"""Offers an instance in place of the class."""

from dataclasses import dataclass

from lmmkit.api import HiddenAt, Loss, Select, hookimpl

WHERE = "plugins.mistake"
CODE = "plugin/not-a-component"


@dataclass(frozen=True, kw_only=True)
class Mistake(Loss):
    @property
    def needs(self):
        return (HiddenAt(Select(supervised=True)),)

    def value(self, ctx):
        return ctx[self.needs[0]].float().square().sum()


@hookimpl
def lmmkit_components():
    return {"mistake": Mistake(name="mistake")}
