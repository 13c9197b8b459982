"""Checks of `losses`: what has a weight is a term, each term has one, and `by` names what weights rows."""

from __future__ import annotations

from lmmkit import plugin_calls
from lmmkit.api.components import (
    AuxTask,
    ExtraView,
    ImageReducer,
    RowLoss,
    StepTerm,
    Term,
    TokenStrategy,
    TokenWeight,
)
from lmmkit.errors import Problem, did_you_mean
from lmmkit.errors.plan import (
    ADDITIVE,
    NO_WEIGHT,
    NOT_A_TERM,
    NOT_A_TOKEN_WEIGHT,
    PER_WEIGHT,
    UNUSED_TOKEN_WEIGHT,
)
from lmmkit.plan.instances import Instances, weighers_of
from lmmkit.recipe import Recipe

KINDS = {
    TokenStrategy: "a token strategy",
    TokenWeight: "weights of rows, which `by` of next_token names",
    ExtraView: "views without a term",
    ImageReducer: "an image reducer",
    object: "no term",
}


def losses(recipe: Recipe, instances: Instances) -> list[Problem]:
    """Returns the problems of `losses`: weights of instances that are not terms, and terms without a weight
    in any stage."""
    problems, weighted = [], set()
    terms = list(instances.terms)
    for stage, section in recipe.stages.items():
        for name in section.losses:
            weighted.add(name)
            component = instances.components.get(name)
            if component is not None and not isinstance(component, Term):
                what = KINDS[next(c for c in type(component).__mro__ if c in KINDS)]
                where, got = recipe.where(f"stages.{stage}.losses.{name}"), f"`{name}`, {what}"
                problems.append(NOT_A_TERM.at(where, got=got, nearest=did_you_mean(name, terms)))
    problems += _by(recipe, instances)
    for name, term in instances.terms.items():
        sums = isinstance(term, StepTerm | RowLoss) or (isinstance(term, AuxTask) and term.text_loss)
        if type(term.additive) is not bool or (sums and not term.additive):
            problems.append(ADDITIVE.at(recipe.where(f"plugins.{name}"), got=f"additive = {term.additive!r}"))
    for name in terms:
        if name not in weighted:
            where, got = recipe.where(f"plugins.{name}"), f"`{name}` without a weight"
            problems.append(NO_WEIGHT.at(where, got=got, name=name))
    return problems


def _by(recipe: Recipe, instances: Instances) -> list[Problem]:
    """Returns the problems of `by`: plugins that give no weights to rows, and such plugins that no stage names."""
    problems, named = [], set()
    offered = [name for name, c in instances.components.items() if isinstance(c, TokenWeight)]
    for stage, section in recipe.stages.items():
        weight = section.losses.get("next_token")
        for i, name in enumerate(weight.by or () if weight is not None else ()):
            named.add(name)
            if not isinstance(instances.components.get(name), TokenWeight):
                where = recipe.where(f"stages.{stage}.losses.next_token.by.{i}")
                nearest = did_you_mean(name, offered)
                problems.append(NOT_A_TOKEN_WEIGHT.at(where, got=f"`{name}`", nearest=nearest))
        if weight is not None and weight.per == "weight":
            late = [w.name for w in weighers_of(instances, weight) if plugin_calls.has_weigh(w)]
            where = recipe.where(f"stages.{stage}.losses.next_token.per")
            problems += [PER_WEIGHT.at(where, got=f"`per: weight` and `weigh` of `{name}`") for name in late]
    for name in offered:
        if name not in named:
            where, got = recipe.where(f"plugins.{name}"), f"`{name}`, which no `by` names"
            problems.append(UNUSED_TOKEN_WEIGHT.at(where, got=got, name=name))
    return problems
