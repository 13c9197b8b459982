"""Checks of token strategies: rows that fit the module, in places that depend on the layout alone."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from torch import nn

from lmmkit import plugin_calls
from lmmkit.api.components import TokenStrategy
from lmmkit.api.model_info import Dims
from lmmkit.api.sample import View
from lmmkit.errors import Problem
from lmmkit.errors.dry_run import NOT_PURE, TOKEN_ROWS
from lmmkit.plan.dry_run.subject import Check, global_seed, problem

KEYS = 8  # other keys of one sample


@dataclass(frozen=True)
class TokenSubject:
    """Holds a token strategy, its filled module, and views that it may insert into."""

    strategy: TokenStrategy
    module: nn.Module | None
    views: Sequence[View]
    dims: Dims


def same_for_each_key(subject: TokenSubject) -> Iterator[Problem]:
    """Asks for the inserts of one view several times, under other keys: a question to a model has another key."""
    for view in subject.views:
        found = []
        for i in range(KEYS):
            sample = view.sample if i == 0 else replace(view.sample, key=f"key {i}")
            with global_seed(i):
                found.append(tuple(plugin_calls.edit(subject.strategy, replace(view, sample=sample))))
        if other := next((each for each in found if each != found[0]), None):
            got = f"{list(found[0])}, then {list(other)} for the same turns"
            expected = "inserts that depend on nothing but the turns and images of the view"
            yield problem(NOT_PURE, subject.strategy.name, "edit", subject.strategy, got, expected=expected)
            return


def row_counts(subject: TokenSubject) -> Iterator[Problem]:
    """Compares the rows of each insert with the rows that the module gives."""
    strategy, module = subject.strategy, subject.module
    inserts = {insert for view in subject.views for insert in plugin_calls.edit(strategy, view)}
    if inserts and module is None:
        yield problem(
            TOKEN_ROWS, strategy.name, "modules", strategy, "None", rows=f"[n, {subject.dims.width}]"
        )
    if inserts and module is not None:
        found = plugin_calls.tokens(strategy.name, module, subject.dims.width, strategy)
        for insert in sorted(inserts, key=repr):
            if insert.n != len(found):
                got = f"{insert}, and {len(found)} rows of its module"
                rows = f"[{insert.n}, {subject.dims.width}]"
                yield problem(TOKEN_ROWS, strategy.name, "edit", strategy, got, rows=rows)


CHECKS: tuple[Check[TokenSubject], ...] = (same_for_each_key, row_counts)
