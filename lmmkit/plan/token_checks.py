"""Checks of token strategies: their inserts on probe views, and who reads their tokens."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any, get_args

import torch

from lmmkit.api.components import AuxTask, TokenStrategy
from lmmkit.api.layout import Insert, InsertAt
from lmmkit.api.model_info import Dims
from lmmkit.api.needs import selector
from lmmkit.api.sample import Image, Sample, Turn, View
from lmmkit.data.text_tokenizers.choose import TextTokenizer
from lmmkit.data.views import vocabulary_id
from lmmkit.errors import Problem, UserError
from lmmkit.errors.plan import EDIT_KEY, INSERT, TOKEN_TWICE, TOKENS, UNREAD_TOKEN
from lmmkit.plan.instances import Instances
from lmmkit.recipe import Recipe

PROBE = Sample(
    key="probe",
    images=(Image("probe"),),
    turns=(Turn("user", "what is this", images=1), Turn("assistant", "a red circle")),
)
TEXT_PROBE = replace(PROBE, images=(), turns=(Turn("user", "what is this"), PROBE.turns[1]))
PROBES = (PROBE, TEXT_PROBE, replace(PROBE, turns=(*PROBE.turns, *TEXT_PROBE.turns)))


def strategies_of(instances: Instances) -> dict[str, TokenStrategy]:
    """Returns the token strategies, in recipe order."""
    return {name: c for name, c in instances.components.items() if isinstance(c, TokenStrategy)}


def inserts(
    recipe: Recipe, instances: Instances, dims: Dims, tokenizer: TextTokenizer | None
) -> list[Problem]:
    """Returns the problems of inserts: places, tokens and rows that do not exist, and a dependence on the key."""
    problems = []
    views = ["main", *(name for name, c in instances.components.items() if isinstance(c, AuxTask))]
    for name, strategy in strategies_of(instances).items():
        where, edits = recipe.where(f"plugins.{name}"), []
        for view in (View(sample=sample, name=view) for sample in PROBES for view in views):
            made, again = strategy.edit(view), strategy.edit(replace(view, sample=_of_another_key(view)))
            edits += [edit for edit in made if edit not in edits]
            if list(made) != list(again):
                problems.append(EDIT_KEY.at(where, got=f"{list(made)} and {list(again)}"))
        shape = _module_shape(strategy, dims)
        for edit in edits:
            problems += _insert(where, strategy, edit, shape, dims.width, tokenizer)
    return list(dict.fromkeys(problems))


def _of_another_key(view: View) -> Sample:
    return replace(view.sample, key=f"{view.sample.key}, another key")


def _module_shape(strategy: TokenStrategy, dims: Dims) -> tuple[int, ...]:
    """Returns the shape of the embeddings of a strategy; () without a module."""
    with torch.device("meta"):
        module = strategy.modules(dims)
        return () if module is None else tuple(module().shape)


def _insert(
    where: str, strategy: TokenStrategy, edit: Any, shape: tuple[int, ...], width: int,
    tokenizer: TextTokenizer | None,
) -> Iterator[Problem]:  # fmt: skip
    places = get_args(InsertAt)
    if shape[1:] != (width,):
        got = f"a module that gives {list(shape)}" if shape else "no module"
        yield INSERT.at(where, got=got, positions=", ".join(places), rows=f"[rows, {width}]")
    elif not (
        isinstance(edit, Insert)
        and edit.at in places
        and edit.token_name in strategy.provides
        and edit.n == shape[0] > 0
        and (edit.at == "after_token") == isinstance(edit.token, str)
    ):
        yield INSERT.at(where, got=str(edit), positions=", ".join(places), rows=shape[0])
    elif edit.token is not None and tokenizer is not None:
        try:
            vocabulary_id(tokenizer, edit.token, where)
        except UserError as error:
            yield from error.problems


def token_names(recipe: Recipe, instances: Instances) -> list[Problem]:
    """Returns the problems of tokens: unread ones, and ones with two providers."""
    problems, owner = [], {}
    read = {selector(need).token_name for term in instances.terms.values() for need in term.needs}
    for name, strategy in strategies_of(instances).items():
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
    return all(edit.at == "end" for edit in strategy.edit(View(sample=PROBE)))
