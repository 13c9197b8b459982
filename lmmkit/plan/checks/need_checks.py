"""Checks of needs: the views, tokens, layers and features that terms read are there, and each view is read."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import fields
from typing import Literal, get_args, get_origin, get_type_hints

from lmmkit import plugin_calls
from lmmkit.api.components import (
    AuxTask,
    ExtraView,
    OthersKind,
    Reader,
    StepTerm,
    Term,
    ViewMaker,
)
from lmmkit.api.model_info import Dims
from lmmkit.api.needs import (
    ATTENTION,
    AttnTo,
    HiddenAt,
    HiddenMean,
    Need,
    OfTargets,
    Select,
    VisionAt,
    reads_images,
    reads_reference,
    selector,
    selectors,
)
from lmmkit.errors import Problem, did_you_mean
from lmmkit.errors.plan import (
    ATTN_KEYS,
    FROZEN,
    IMAGE_ROWS,
    LAYERS,
    NO_TARGET,
    NO_VIEW,
    OTHERS_KIND,
    PATCHES,
    REFERENCE,
    SELECT,
    STEP_TERM,
    UNPROVIDED_TOKEN,
    UNREAD_VIEW,
    VIEW_ROLE,
)
from lmmkit.plan.instances import Instances, without_patches
from lmmkit.plan.stage_plan import StagePlan
from lmmkit.plugin_calls.guard import place_of
from lmmkit.recipe import Recipe, Stage


def selects(term: Reader) -> list[Problem]:
    """Returns the problems of selectors with a word that no span has: they would select nothing, in silence."""
    problems, where = [], f"{term.name}.needs, {place_of(term, 'needs')}"
    hints = get_type_hints(Select).items()
    known = {name: choices for name, hint in hints if (choices := _literals(hint))}
    for need in plugin_calls.needs(term):
        for select in (getattr(need, each.name) for each in fields(need)):
            for name, choices in known.items() if isinstance(select, Select) else ():
                value = getattr(select, name)
                if value is not None and value not in choices:
                    words, got = ", ".join(map(str, choices)), f"Select({name}={value!r})"
                    problems.append(SELECT.at(where, got=got, name=name, choices=words))
    return problems


def _literals(hint: object) -> list[object]:
    """Returns the values that a type names one by one."""
    kinds = [each for each in (hint, *get_args(hint)) if get_origin(each) is Literal]
    return [value for kind in kinds for value in get_args(kind)]


def needs(recipe: Recipe, instances: Instances, plan: StagePlan, dims: Dims) -> list[Problem]:
    """Returns the problems of needs: missing views, layers or tokens, and views that no term reads."""
    problems = []
    views = {"main": ("",), **{maker.name: maker.roles for maker in plan.makers}}
    provided = {token for strategy in instances.strategies.values() for token in strategy.provides}
    for term in plan.readers:
        where = recipe.where(f"plugins.{term.name}")
        if not plan.reference and any(map(reads_reference, plugin_calls.needs(term))):
            got = f"`{term.name}` reads a reference, and stage `{plan.stage}` has none"
            problems.append(REFERENCE.at(recipe.where(f"stages.{plan.stage}"), got=got, stage=plan.stage))
        for need in plugin_calls.needs(term):
            problems += _need(where, term, need, views, provided, dims)
            if isinstance(need, VisionAt):
                problems += _vision(where, need, recipe, recipe.stages[plan.stage])
                if need.stage == "encoder" and (by := without_patches(recipe, instances, dims)):
                    got = f"features of the encoder, and rows of `{by}`"
                    problems.append(PATCHES.at(where, got=got))
        if isinstance(term, StepTerm) and recipe.stages[plan.stage].batch.samples < 2:
            got = f"`{term.name}` in a stage with `batch.samples: 1`"
            problems.append(STEP_TERM.at(where, got=got, stage=plan.stage))
        if isinstance(term, AuxTask) and not term.text_loss and not _reads_own_view(term):
            problems.append(UNREAD_VIEW.at(where, got=f"views of `{term.name}`, which no term reads"))
    return problems


def _need(
    where: str,
    term: Reader,
    need: Need,
    views: Mapping[str, tuple[str, ...]],
    provided: Collection[str],
    dims: Dims,
) -> list[Problem]:
    problems = []
    select = selector(need)
    if select.view not in views:
        got, nearest = f"a need on view `{select.view}`", did_you_mean(select.view, views)
        problems.append(NO_VIEW.at(where, got=got, nearest=nearest))
    elif select.view_role not in (None, *views[select.view]):
        roles, got = views[select.view], f"role `{select.view_role}` of view `{select.view}`"
        nearest = did_you_mean(select.view_role, roles)
        problems.append(VIEW_ROLE.at(where, got=got, roles=", ".join(map(repr, roles)), nearest=nearest))
    for each in selectors(need):
        if each.token_name is not None and each.token_name not in provided:
            got = f"`{term.name}` reads token `{each.token_name}`, which no plugin provides"
            problems.append(UNPROVIDED_TOKEN.at(where, got=got))
    if isinstance(need, OfTargets) and not _targets(need.at):
        problems.append(NO_TARGET.at(where, got=f"`{term.name}` reads {need.at}"))
    if isinstance(need, AttnTo) and need.k.kind is None and need.k.token_name is None:
        problems.append(ATTN_KEYS.at(where, got=f"`{term.name}` reads {need.k}"))
    if isinstance(need, ATTENTION):
        problems += _numbers(where, "layers", need.layers, dims.layers)
    if isinstance(need, AttnTo):
        problems += _numbers(where, "heads", need.heads, dims.heads)
    if isinstance(need, HiddenAt | HiddenMean) and need.layer not in ("final", *range(dims.layers)):
        expected = f"`final`, or a number of blocks from 0 to {dims.layers - 1}"
        problems.append(LAYERS.at(where, got=f"layer {need.layer!r}", layers=expected))
    return problems


def _targets(select: Select) -> bool:
    """Returns whether a selector can select targets: supervised text of a response."""
    return (
        select.kind in (None, "text")
        and select.role in (None, "response")
        and select.token_name is None
        and select.supervised is not False
        and select.shift == 0
    )


def _numbers(where: str, what: str, got: Literal["all"] | tuple[int, ...], count: int) -> list[Problem]:
    """Returns a problem if `got` is neither `all` nor distinct numbers below `count`."""
    if got == "all" or (got and len(set(got)) == len(got) and set(got) <= set(range(count))):
        return []
    expected = f"`all`, or numbers from 0 to {count - 1}, each once"
    return [LAYERS.at(where, got=f"{what} {list(got)}", layers=expected)]


def _vision(where: str, need: VisionAt, recipe: Recipe, stage: Stage) -> list[Problem]:
    """Returns the problems of a need for vision features."""
    if recipe.model.vision is None:
        return [IMAGE_ROWS.at(where, got="a model without an encoder")]
    if need.stage not in ("encoder", "projected"):
        return [IMAGE_ROWS.at(where, got=f"stage {need.stage!r}")]
    if not reads_images(need):
        return [IMAGE_ROWS.at(where, got=f"`at` {need.at}")]
    parts = ("vision",) if need.stage == "encoder" else ("vision", "connector")
    if not need.detach and not set(parts) & set(stage.train.parts()):
        got = f"`detach=False` for features of `{need.stage}`, which no trainable part computes"
        return [FROZEN.at(where, got=got, parts=" or ".join(f"`{part}`" for part in parts))]
    return []


def _reads_own_view(term: Term) -> bool:
    return any(selector(need).view == term.name for need in plugin_calls.needs(term))


def extra_views(recipe: Recipe, instances: Instances) -> list[Problem]:
    """Returns the problems of what makes views: extra views that no term of the recipe reads, and unknown kinds of
    other samples."""
    problems = []
    kinds = get_args(OthersKind)
    read = {selector(need).view for term in instances.readers for need in plugin_calls.needs(term)}
    for name, component in instances.components.items():
        where = recipe.where(f"plugins.{name}")
        if isinstance(component, ExtraView) and name not in read:
            problems.append(UNREAD_VIEW.at(where, got=f"views of `{name}`, which no term reads"))
        if isinstance(component, ViewMaker) and component.others not in kinds:
            problems.append(OTHERS_KIND.at(where, got=f"{component.others!r}", kinds=" or ".join(kinds)))
    return problems
