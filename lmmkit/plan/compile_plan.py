"""Compiles a recipe to one frozen plan per stage: terms, views, needs, positions of learned tokens.

Every invalid combination is found here, before any costly work starts. After this step no choice is
left: the pipeline and the objective execute the plan.
"""

from __future__ import annotations

import hashlib
from dataclasses import fields

from lmmkit import plugin_calls
from lmmkit.api.components import Component, TokenStrategy
from lmmkit.api.model_info import Dims
from lmmkit.api.needs import AttnMass, Need, selector
from lmmkit.api.sample import View
from lmmkit.errors import raise_all
from lmmkit.plan import checks
from lmmkit.plan.instances import Instances
from lmmkit.plan.stage_plan import StagePlan
from lmmkit.recipe import Recipe, Weight


def compile_plan(recipe: Recipe, instances: Instances, dims: Dims) -> dict[str, StagePlan]:
    """Returns a plan for every stage, by stage name.

    Raises:
        UserError: with the problems of all stages.
    """
    problems = checks.faults(instances, dims)
    raise_all(problems)
    problems = checks.settings(recipe, instances, dims) + checks.losses(recipe, instances)
    raise_all(problems)
    plans = {stage: _compile(recipe, instances, stage) for stage in recipe.stages}
    for plan in plans.values():
        problems += checks.needs(recipe, instances, plan, dims)
    problems += checks.token_names(recipe, instances)
    raise_all(problems)
    for plan in plans.values():
        problems += checks.reach(recipe, instances, plan)
    raise_all(dict.fromkeys(problems))
    return plans


def chat_plan(instances: Instances, stage: str) -> StagePlan:
    """Returns the plan for inference: no terms, and every token strategy from `instances` in every view."""
    strategies = tuple((c, None) for c in instances.components.values() if isinstance(c, TokenStrategy))
    weights = {"next_token": Weight(weight=0.0, watch=True)}
    return StagePlan(
        stage=stage, weights=weights, terms=(), strategies=strategies, needs=(), off={},
        digest=_digest(instances, weights, (), strategies),
    )  # fmt: skip


def _compile(recipe: Recipe, instances: Instances, stage: str) -> StagePlan:
    weights = recipe.stages[stage].losses
    kept = {name: w for name, w in weights.items() if not w.constant_zero or w.watch}
    names = sorted(name for name in kept if name != "next_token")
    terms = tuple(instances.terms[name] for name in names)
    needs = tuple(dict.fromkeys(need for term in terms for need in plugin_calls.needs(term)))
    strategies, off = [], {}
    for name, component in instances.components.items():
        if isinstance(component, TokenStrategy):
            if views := _readers(component, needs):
                strategies.append((component, views if _only_at_end(component) else None))
            else:
                off[name] = "no active term reads its tokens"
        elif name not in weights:
            off[name] = "no weight in this stage"
        elif name not in kept:
            off[name] = "weight 0"
    if "next_token" not in kept:
        kept["next_token"] = Weight(weight=0.0, watch=True)
    return StagePlan(
        stage=stage, weights=kept, terms=terms, strategies=tuple(strategies), needs=needs, off=off,
        digest=_digest(instances, kept, terms, strategies),
    )  # fmt: skip


def _readers(strategy: TokenStrategy, needs: tuple[Need, ...]) -> frozenset[str]:
    """Returns the views in which some need reads a token of this strategy."""
    selects = [selector(need) for need in needs] + [n.k for n in needs if isinstance(n, AttnMass)]
    return frozenset(select.view for select in selects if select.token_name in strategy.provides)


def _only_at_end(strategy: TokenStrategy) -> bool:
    """Returns whether all its tokens are at the end: text and images do not attend to them."""
    return all(edit.at == "end" for edit in plugin_calls.edit(strategy, View(sample=checks.PROBE)))


def settings_of(component: Component) -> dict[str, object]:
    """Returns the component's settings, by the keys of the recipe."""
    return {f.name: getattr(component, f.name) for f in fields(component) if f.name != "name"}


def _digest(instances: Instances, weights, terms, strategies) -> str:
    lines = [f"{name} {weight}" for name, weight in sorted(weights.items())]
    for component in (*terms, *(s for s, _ in strategies)):
        kind = f"{type(component).__module__}.{type(component).__qualname__}"
        lines.append(f"{component.name} {kind} {instances.origin(component.name)} {settings_of(component)}")
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()[:12]
