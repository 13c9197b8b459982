"""Forgets a letter of `needs`."""

from dataclasses import dataclass

from lmmkit.api import HiddenAt, Loss, Select, hookimpl

WHERE = "mistake.needs"
CODE = "plugin/returned"


STATES = HiddenAt(Select(supervised=True))


@dataclass(frozen=True, kw_only=True)
class Mistake(Loss):
    need = (STATES,)

    def value(self, ctx):
        return ctx[STATES].float().square().sum()


@hookimpl
def lmmkit_components():
    return {"mistake": Mistake}
