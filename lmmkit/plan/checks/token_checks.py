"""Checks of token strategies: their inserts on probe views, and who reads their tokens."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import get_args

import torch

from lmmkit import plugin_calls
from lmmkit.api.components import TokenStrategy, ViewMaker
from lmmkit.api.layout import InsertAt
from lmmkit.api.model_info import Dims
from lmmkit.api.needs import selectors
from lmmkit.api.sample import Image, Sample, Turn, View
from lmmkit.data.text_tokenizers.choose import TextTokenizer
from lmmkit.data.views import vocabulary_id
from lmmkit.errors import Problem, Tried
from lmmkit.errors.dry_run import NOT_PURE
from lmmkit.errors.plan import EDIT_KEY, INSERT, TOKEN_TWICE, TOKENS, UNREAD_TOKEN
from lmmkit.plan.instances import Instances
from lmmkit.progress import plural
from lmmkit.recipe import Recipe

PROBE = Sample(
    key="probe",
    images=(Image("probe"),),
    turns=(Turn("user", "what is this", images=1), Turn("assistant", "a red circle")),
)
TEXT_PROBE = replace(PROBE, images=(), turns=(Turn("user", "what is this"), PROBE.turns[1]))
PROBES = (PROBE, TEXT_PROBE, replace(PROBE, turns=(*PROBE.turns, *TEXT_PROBE.turns)))


def inserts(
    recipe: Recipe, instances: Instances, dims: Dims, tokenizer: TextTokenizer | None
) -> list[Problem]:
    """Returns the problems of inserts: places, tokens and rows that do not exist, and a dependence on the key."""
    problems = []
    views = ["main", *(name for name, c in instances.components.items() if isinstance(c, ViewMaker))]
    probes = [View(sample=sample, name=view) for sample in PROBES for view in views]
    for name, strategy in instances.strategies.items():
        where = recipe.where(f"plugins.{name}")
        tried = Tried(lambda s=strategy, at=where: _inserts(at, s, probes, dims, tokenizer))
        problems += tried.value if tried.error is None else tried.error.problems
    return problems


def _inserts(
    where: str, strategy: TokenStrategy, probes: Sequence[View], dims: Dims, tokenizer: TextTokenizer | None
) -> list[Problem]:
    problems, edits = [], []
    for view in probes:  # a random choice of two is equal by chance in few of them
        made, *same = (list(plugin_calls.edit(strategy, view)) for _ in range(4))
        if varied := next((each for each in same if each != made), None):
            expected = "inserts that depend on nothing but the view"
            return [NOT_PURE.at(where, got=f"{made}, then {varied} for one view", expected=expected)]
    for view in probes:
        made = plugin_calls.edit(strategy, view)
        other = replace(view, sample=replace(view.sample, key=f"{view.sample.key}, another key"))
        again = plugin_calls.edit(strategy, other)
        edits += [edit for edit in made if edit not in edits]
        if list(made) != list(again):
            problems.append(EDIT_KEY.at(where, got=f"{made} and {again}"))
    rows = _module_rows(strategy, dims)
    for edit in edits:
        if edit.n != rows:
            module = "no module" if rows is None else f"a module of {plural(rows, 'row')}"
            problems.append(
                INSERT.at(where, got=f"{edit}, and {module}", positions=", ".join(get_args(InsertAt)))
            )
        elif edit.token is not None and tokenizer is not None:
            tried = Tried(lambda token=edit.token: vocabulary_id(tokenizer, token, where))
            problems += [] if tried.error is None else tried.error.problems
    return list(dict.fromkeys(problems))


def _module_rows(strategy: TokenStrategy, dims: Dims) -> int | None:
    """Returns the number of embeddings that a strategy has; None without a module."""
    with torch.device("meta"):
        module = plugin_calls.modules(strategy, dims)
        return (
            None if module is None else len(plugin_calls.tokens(strategy.name, module, dims.width, strategy))
        )


def token_names(recipe: Recipe, instances: Instances) -> list[Problem]:
    """Returns the problems of tokens: unread ones, and ones with two providers."""
    problems, owner = [], {}
    needs = [need for term in instances.readers for need in plugin_calls.needs(term)]
    read = {select.token_name for need in needs for select in selectors(need)}
    for name, strategy in instances.strategies.items():
        where = recipe.where(f"plugins.{name}")
        if not strategy.unread and not read & set(strategy.provides):
            got = f"tokens that no term reads: {', '.join(strategy.provides)}"
            problems.append(UNREAD_TOKEN.at(where, got=got))
        for token_name in strategy.provides:
            if token_name in owner:
                got = f"token `{token_name}`, which `{owner[token_name]}` also provides"
                problems.append(TOKEN_TWICE.at(where, got=got))
            owner[token_name] = name
    return problems


def stage_tokens(recipe: Recipe, instances: Instances) -> list[Problem]:
    """Returns the problems of the stages' `tokens`: plugins whose tokens act only where a term reads them."""
    problems = []
    for stage, section in recipe.stages.items():
        for i, name in enumerate(section.tokens):
            component = instances.components[name]
            if not (isinstance(component, TokenStrategy) and component.unread and not only_at_end(component)):
                where = recipe.where(f"stages.{stage}.tokens.{i}")
                problems.append(TOKENS.at(where, got=f"`{name}`"))
    return problems


def only_at_end(strategy: TokenStrategy) -> bool:
    """Returns whether all its tokens are at the end: text and images do not attend to them."""
    return all(edit.at == "end" for edit in plugin_calls.edit(strategy, View(sample=PROBE)))
