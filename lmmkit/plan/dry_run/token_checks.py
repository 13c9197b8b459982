"""Checks of token strategies on real views. `plan/token_checks.py` has tried them on a few probes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from lmmkit import plugin_calls
from lmmkit.api.components import TokenStrategy
from lmmkit.api.sample import View
from lmmkit.errors import Problem
from lmmkit.errors.dry_run import NOT_PURE
from lmmkit.plan.dry_run.subject import Check, global_seed, problem

CALLS = 4


@dataclass(frozen=True)
class TokenSubject:
    """Holds a token strategy and views that it may insert into."""

    strategy: TokenStrategy
    views: Sequence[View]


def pure_inserts(subject: TokenSubject) -> Iterator[Problem]:
    """Asks for the inserts of each view several times, with other global generators."""
    strategy, found = subject.strategy, []
    for call in range(CALLS):
        with global_seed(call):
            found.append([list(plugin_calls.edit(strategy, view)) for view in subject.views])
    for one, *others in zip(*found, strict=True):
        if other := next((each for each in others if each != one), None):
            got, expected = f"{one}, then {other} for one view", "inserts that depend on nothing but the view"
            yield problem(NOT_PURE, strategy.name, "edit", strategy, got, expected=expected)
            return


CHECKS: tuple[Check[TokenSubject], ...] = (pure_inserts,)
