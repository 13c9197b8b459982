"""Recipe -> one frozen plan a stage: terms, views, needs, where learned tokens stand.

Everything that could go wrong by combination is found here, before anything costs time. After
this, nothing decides: the pipeline and the objective carry the plan out.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping
from dataclasses import dataclass, fields

from lmmkit.dims import Dims
from lmmkit.errors import raise_all
from lmmkit.needs import AttnMass, Need, selector
from lmmkit.parts import AuxTask, Component, Term, TokenStrategy
from lmmkit.plan import checks
from lmmkit.plan.components import Parts
from lmmkit.recipe import Recipe, Weight
from lmmkit.sample import View


@dataclass(frozen=True, kw_only=True)
class StagePlan:
    """What one stage computes. Order of plugins never matters but among inserts at one place.

    `strategies` pairs each active token strategy with the views it inserts into (None: all).
    `off` names the instances that this stage leaves out, with the reason.
    """

    stage: str
    weights: Mapping[str, Weight]
    terms: tuple[Term, ...]
    strategies: tuple[tuple[TokenStrategy, frozenset[str] | None], ...]
    needs: tuple[Need, ...]
    off: Mapping[str, str]
    digest: str

    @property
    def tasks(self) -> tuple[AuxTask, ...]:
        """Active auxiliary tasks, by name."""
        return tuple(term for term in self.terms if isinstance(term, AuxTask))

    @property
    def text_terms(self) -> tuple[str, ...]:
        """Terms that are next-token losses on some view's text."""
        return ("next_token", *(task.name for task in self.tasks if task.learns_text))

    def chances(self, dims: Dims) -> dict[str, float]:
        """What each term's average would be at chance, where that is known beforehand: ln V a token
        for text, what the term says otherwise."""
        text = dict.fromkeys(self.text_terms, math.log(dims.vocab))
        said = {term.name: term.chance(dims) for term in self.terms}
        return text | {name: chance for name, chance in said.items() if chance is not None}

    @property
    def active(self) -> frozenset[str]:
        """Instances that take part: their modules may learn."""
        return frozenset(t.name for t in self.terms) | {s.name for s, _ in self.strategies}

    @property
    def speaks_through(self) -> tuple[str, ...]:
        """Token strategies that stand in the main view, so that inference needs them."""
        return tuple(s.name for s, views in self.strategies if views is None or "main" in views)


def compile_plan(recipe: Recipe, parts: Parts, dims: Dims) -> dict[str, StagePlan]:
    """A plan for every stage.

    Raises:
        UserError: with every problem of every stage.
    """
    problems = checks.settings(recipe, parts, dims) + checks.losses(recipe, parts)
    raise_all(problems)
    plans = {stage: _compile(recipe, parts, stage) for stage in recipe.stages}
    for plan in plans.values():
        problems += checks.needs(recipe, parts, plan, dims)
    problems += checks.marks(recipe, parts)
    raise_all(problems)
    for plan in plans.values():
        problems += checks.reach(recipe, parts, plan)
    raise_all(dict.fromkeys(problems))
    return plans


def speaking_plan(parts: Parts, stage: str) -> StagePlan:
    """What answering takes: no term, and every token strategy of `parts` in every view."""
    strategies = tuple((c, None) for c in parts.components.values() if isinstance(c, TokenStrategy))
    weights = {"next_token": Weight(weight=0.0, watch=True)}
    return StagePlan(
        stage=stage, weights=weights, terms=(), strategies=strategies, needs=(), off={},
        digest=_digest(parts, weights, (), strategies),
    )  # fmt: skip


def _compile(recipe: Recipe, parts: Parts, stage: str) -> StagePlan:
    weights = recipe.stages[stage].losses
    kept = {name: w for name, w in weights.items() if not w.constant_zero or w.watch}
    names = sorted(name for name in kept if name != "next_token")
    terms = tuple(parts.terms[name] for name in names)
    needs = tuple(dict.fromkeys(need for term in terms for need in term.needs))
    strategies, off = [], {}
    for name, component in parts.components.items():
        if isinstance(component, TokenStrategy):
            if views := _readers(component, needs):
                strategies.append((component, views if _only_at_end(component) else None))
            else:
                off[name] = "no active term reads its tokens"
        elif name not in weights:
            off[name] = "not weighed in this stage"
        elif name not in kept:
            off[name] = "weight 0"
    if "next_token" not in kept:
        kept["next_token"] = Weight(weight=0.0, watch=True)
    return StagePlan(
        stage=stage, weights=kept, terms=terms, strategies=tuple(strategies), needs=needs, off=off,
        digest=_digest(parts, kept, terms, strategies),
    )  # fmt: skip


def _readers(strategy: TokenStrategy, needs: tuple[Need, ...]) -> frozenset[str]:
    """Views in which some need reads a mark of this strategy."""
    sels = [selector(need) for need in needs] + [n.k for n in needs if isinstance(n, AttnMass)]
    return frozenset(sel.view for sel in sels if sel.mark in strategy.provides)


def _only_at_end(strategy: TokenStrategy) -> bool:
    """Whether all its tokens stand after everything, where nobody but a reader could notice."""
    return all(edit.at == "end" for edit in strategy.edit(View(sample=checks.PROBE)))


def settings_of(component: Component) -> dict[str, object]:
    """The settings as the recipe would write them."""
    return {f.name: getattr(component, f.name) for f in fields(component) if f.name != "name"}


def _digest(parts: Parts, weights, terms, strategies) -> str:
    lines = [f"{name} {weight}" for name, weight in sorted(weights.items())]
    for component in (*terms, *(s for s, _ in strategies)):
        kind = f"{type(component).__module__}.{type(component).__qualname__}"
        lines.append(f"{component.name} {kind} {parts.origin(component.name)} {settings_of(component)}")
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()[:12]
