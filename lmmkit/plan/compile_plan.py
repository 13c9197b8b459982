"""Compiles a recipe to one frozen plan per stage: terms, views, needs, positions of learned tokens.

Every invalid combination is found here, before any costly work starts. After this step no choice is
left: the pipeline and the objective execute the plan.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import fields

from lmmkit import plugin_calls
from lmmkit.api.components import Component, ExtraView, ImageReducer, TokenStrategy, TokenWeight
from lmmkit.api.model_info import Dims
from lmmkit.api.needs import Need, reads_reference, selector, selectors, teacher_models_of, teachers_of
from lmmkit.data.text_tokenizers.choose import TextTokenizer
from lmmkit.errors import raise_all
from lmmkit.plan import checks
from lmmkit.plan.checks import token_checks
from lmmkit.plan.instances import Instances, reducer_of, weighers_of
from lmmkit.plan.stage_plan import START, StagePlan
from lmmkit.plan.teachers import NO_TEACHERS, TeacherFolder, teacher_problems
from lmmkit.recipe import Recipe, Stage, Weight
from lmmkit.weights.weights_hash import weights_hash


def compile_plan(
    recipe: Recipe, instances: Instances, dims: Dims, tokenizer: TextTokenizer | None,
    teachers: Mapping[str, TeacherFolder] = NO_TEACHERS,
) -> dict[str, StagePlan]:  # fmt: skip
    """Returns a plan for every stage, by stage name. Without a tokenizer, tokens of the vocabulary are not checked.

    Raises:
        UserError: with the problems of all stages.
    """
    problems = checks.faults(instances, dims)
    raise_all(problems)
    problems = checks.settings(recipe, instances, dims) + checks.losses(recipe, instances)
    problems += checks.reducer(recipe, instances, dims) + teacher_problems(recipe, instances, dims)
    problems += checks.images_by_shape(recipe, dims)
    problems += token_checks.inserts(recipe, instances, dims, tokenizer)
    problems += token_checks.stage_tokens(recipe, instances)
    raise_all(problems)
    plans = {stage: _compile(recipe, instances, stage, teachers) for stage in recipe.stages}
    for plan in plans.values():
        problems += checks.needs(recipe, instances, plan, dims) + checks.feature_needs(recipe, plan)
        problems += checks.native_views(recipe, plan, dims)
    problems += token_checks.token_names(recipe, instances) + checks.extra_views(recipe, instances)
    raise_all(problems)
    for plan in plans.values():
        problems += checks.reach(recipe, instances, plan)
    raise_all(dict.fromkeys(problems))
    return plans


def chat_plan(recipe: Recipe, instances: Instances, stage: str) -> StagePlan:
    """Returns the plan for inference: no terms, and every token strategy from `instances` in every view."""
    reducer = reducer_of(recipe, instances)
    strategies = tuple((strategy, None) for strategy in instances.strategies.values())
    weights, reducers = {"next_token": Weight(weight=0.0, watch=True)}, () if reducer is None else (reducer,)
    return StagePlan(
        stage=stage, weights=weights, terms=(), strategies=strategies, needs=(), off={},
        digest=_digest(instances, weights, reducers, strategies), reducer=reducer,
    )  # fmt: skip


def _compile(
    recipe: Recipe, instances: Instances, stage: str, teachers: Mapping[str, TeacherFolder]
) -> StagePlan:
    section = recipe.stages[stage]
    kept = {name: w for name, w in section.losses.items() if not w.constant_zero or w.watch}
    names = sorted(name for name in kept if name != "next_token")
    terms = tuple(instances.terms[name] for name in names)
    weighers = weighers_of(instances, kept.get("next_token"))
    needs = tuple(
        dict.fromkeys(need for reader in (*terms, *weighers) for need in plugin_calls.needs(reader))
    )
    strategies, reducer = _strategies(instances, section, needs), reducer_of(recipe, instances)
    views = {selector(need).view for need in needs}
    extra_views = tuple(
        component
        for name, component in instances.components.items()
        if isinstance(component, ExtraView) and name in views
    )
    read = (*terms, *weighers, *extra_views, *(() if reducer is None else (reducer,)))
    active = {component.name for component in (*read, *(strategy for strategy, _ in strategies))}
    off = {n: _why_off(c, section) for n, c in instances.components.items() if n not in active}
    if "next_token" not in kept:
        kept["next_token"] = Weight(weight=0.0, watch=True)
    reference = section.reference or "" if any(map(reads_reference, needs)) else ""
    further = _reference_line(recipe, reference) + _per_line(kept["next_token"])
    read_teachers = dict.fromkeys((*teachers_of(needs), *teacher_models_of(needs)))
    further += [f"teacher {name} {teachers[name].identity()}" for name in read_teachers if name in teachers]
    return StagePlan(
        stage=stage, weights=kept, terms=terms, strategies=strategies, needs=needs, off=off,
        digest=_digest(instances, kept, read, strategies, further), weighers=weighers,
        extra_views=extra_views, reducer=reducer, reference=reference,
    )  # fmt: skip


def _strategies(
    instances: Instances, section: Stage, needs: tuple[Need, ...]
) -> tuple[tuple[TokenStrategy, frozenset[str] | None], ...]:
    """Returns the token strategies of a stage, each with the views that it inserts into (None: all)."""
    found: list[tuple[TokenStrategy, frozenset[str] | None]] = []
    for name, strategy in instances.strategies.items():
        if name in section.tokens:
            found.append((strategy, None))
        elif views := _readers(strategy, needs):
            found.append((strategy, views if token_checks.only_at_end(strategy) else None))
    return tuple(found)


def _why_off(component: Component, section: Stage) -> str:
    """Returns why a stage leaves out a component."""
    match component:
        case TokenStrategy():
            return "not in `tokens` of this stage" if component.unread else "no active term reads its tokens"
        case ExtraView():
            return "no active term reads its views"
        case ImageReducer():
            return "`model.connector.reduce` does not name it"
        case TokenWeight():
            return "`by` of next_token does not name it, or next_token has weight 0"
    return "weight 0" if component.name in section.losses else "no weight in this stage"


def _reference_line(recipe: Recipe, reference: str) -> list[str]:
    if reference in ("", START):
        return [f"reference {reference}"] if reference else []
    return [f"reference {weights_hash(recipe.path(reference))}"]


def _per_line(next_token: Weight) -> list[str]:
    return ["per weight"] if next_token.per == "weight" else []


def _readers(strategy: TokenStrategy, needs: tuple[Need, ...]) -> frozenset[str]:
    """Returns the views in which some need reads a token of this strategy."""
    selects = (select for need in needs for select in selectors(need))
    return frozenset(select.view for select in selects if select.token_name in strategy.provides)


def settings_of(component: Component) -> dict[str, object]:
    """Returns the component's settings, by the keys of the recipe."""
    return {f.name: getattr(component, f.name) for f in fields(component) if f.name != "name"}


def _digest(instances: Instances, weights, read, strategies, further: Sequence[str] = ()) -> str:
    lines = [*(f"{name} {weight}" for name, weight in sorted(weights.items())), *further]
    for component in (*read, *(s for s, _ in strategies)):
        kind = f"{type(component).__module__}.{type(component).__qualname__}"
        lines.append(f"{component.name} {kind} {instances.origin(component.name)} {settings_of(component)}")
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()[:12]
