"""Checks of token strategies on real views. `plan/checks/token_checks.py` has tried them on a few probes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from lmmkit import plugin_calls
from lmmkit.api.components import TokenStrategy
from lmmkit.api.layout import Insert
from lmmkit.api.sample import View
from lmmkit.errors import Problem
from lmmkit.errors.dry_run import NOT_PURE
from lmmkit.errors.plan import EDIT_KEY
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


def same_in_a_prompt(subject: TokenSubject) -> Iterator[Problem]:
    """Asks for the inserts of the prompt of each record, as generation does. Tokens at the end are in none."""
    strategy = subject.strategy
    for view in subject.views:
        made, asked = _inner(strategy, view), _inner(strategy, prompt_of(view))
        if made != asked:
            got = f"{made} for a record, {asked} for its prompt"
            yield problem(EDIT_KEY, strategy.name, "edit", strategy, got)
            return


def prompt_of(view: View) -> View:
    """Returns what a user would ask: a sample with another key, without other fields and the last answer."""
    turns = list(view.sample.turns)
    while turns and turns[-1].role == "assistant":
        turns.pop()
    return View(sample=replace(view.sample, key="prompt", turns=tuple(turns), meta={}))


def _inner(strategy: TokenStrategy, view: View) -> list[Insert]:
    return [insert for insert in plugin_calls.edit(strategy, view) if insert.at != "end"]


CHECKS: tuple[Check[TokenSubject], ...] = (pure_inserts, same_in_a_prompt)
