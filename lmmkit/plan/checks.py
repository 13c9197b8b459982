"""Checks of a plan: pure functions from recipe, instances and plan to problems."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from typing import TYPE_CHECKING, Literal, get_args, get_origin, get_type_hints

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lmmkit import plugin_calls
from lmmkit.api.components import (
    AuxTask,
    ExtraView,
    ImageReducer,
    OthersKind,
    Reader,
    RowLoss,
    StepTerm,
    Term,
    TokenStrategy,
    TokenWeight,
    ViewMaker,
)
from lmmkit.api.layout import Layout, Span, insert_tokens, row_count, text
from lmmkit.api.model_info import Dims
from lmmkit.api.needs import (
    ATTENTION,
    AttnTo,
    HiddenAt,
    HiddenMean,
    Need,
    OfTargets,
    Select,
    TeacherAt,
    VisionAt,
    reads_images,
    reads_reference,
    selector,
)
from lmmkit.api.sample import AnyRes, View
from lmmkit.attention.forest import roots
from lmmkit.data.fits.tiles import most_rows
from lmmkit.errors import Problem, Tried, did_you_mean, raise_all
from lmmkit.errors.plan import (
    ADDITIVE,
    ATTN_KEYS,
    CONNECTS,
    FROZEN,
    IMAGE_ROWS,
    INSTANCE_NAME,
    LAYERS,
    NO_TARGET,
    NO_VIEW,
    NO_WEIGHT,
    NOT_A_REDUCER,
    NOT_A_TERM,
    NOT_A_TOKEN_WEIGHT,
    OTHERS_KIND,
    PATCHES,
    PER_WEIGHT,
    REFERENCE,
    SELECT,
    SETTING,
    STEP_TERM,
    TILES,
    UNPROVIDED_TOKEN,
    UNREACHABLE,
    UNREAD_VIEW,
    UNUSED_TOKEN_WEIGHT,
    VIEW_ROLE,
)
from lmmkit.errors.recipe import CONFLICT
from lmmkit.model.connectors.kinds import CONNECTORS
from lmmkit.model.image_rows import ReducedRows
from lmmkit.plan.instances import Instances
from lmmkit.plan.token_checks import PROBE
from lmmkit.plugin_calls.guard import place_of
from lmmkit.recipe import Recipe, Stage, Weight

if TYPE_CHECKING:
    from lmmkit.plan.stage_plan import StagePlan


KINDS = {
    TokenStrategy: "a token strategy",
    TokenWeight: "weights of rows, which `by` of next_token names",
    ExtraView: "views without a term",
    ImageReducer: "an image reducer",
    object: "no term",
}


def faults(instances: Instances, dims: Dims) -> list[Problem]:
    """Returns the faults of plugins in the methods that the plan calls: it can be made only without them."""
    tried = []
    for component in instances.components.values():
        tried.append(Tried(lambda c=component: plugin_calls.check(c, dims)))
        if isinstance(component, TokenStrategy):
            tried.append(Tried(lambda c=component: plugin_calls.provides(c)))
        if isinstance(component, Reader):
            tried.append(Tried(lambda c=component: raise_all(selects(c))))
        if isinstance(component, Term):
            tried.append(Tried(lambda c=component: plugin_calls.chance(c, dims)))
    found = [problem for each in tried if each.error is not None for problem in each.error.problems]
    return list(dict.fromkeys(found))


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


def settings(recipe: Recipe, instances: Instances, dims: Dims) -> list[Problem]:
    """Returns the problems of plugin settings that do not fit the model's sizes, and of instance names that the modules
    of plugins cannot have."""
    problems, taken = [], nn.ModuleDict()
    for name, component in instances.components.items():
        if hasattr(taken, name):
            where = recipe.where(f"plugins.{name}")
            problems.append(INSTANCE_NAME.at(where, got=f"a plugin named `{name}`", name=name))
        if found := plugin_calls.check(component, dims):
            key = found.partition(":")[0]
            problems.append(SETTING.at(recipe.where(f"plugins.{name}.{key}"), got=found))
    return problems


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
    unused = [name for name, c in instances.components.items() if isinstance(c, TokenWeight)]
    for stage, section in recipe.stages.items():
        weight = section.losses.get("next_token")
        for i, name in enumerate(weight.by or () if weight is not None else ()):
            named.add(name)
            if not isinstance(instances.components.get(name), TokenWeight):
                where = recipe.where(f"stages.{stage}.losses.next_token.by.{i}")
                nearest = did_you_mean(name, unused)
                problems.append(NOT_A_TOKEN_WEIGHT.at(where, got=f"`{name}`", nearest=nearest))
        if weight is not None and weight.per == "weight":
            late = [w.name for w in weighers_of(instances, weight) if plugin_calls.has_weigh(w)]
            where = recipe.where(f"stages.{stage}.losses.next_token.per")
            problems += [PER_WEIGHT.at(where, got=f"`per: weight` and `weigh` of `{name}`") for name in late]
    for name in unused:
        if name not in named:
            where, got = recipe.where(f"plugins.{name}"), f"`{name}`, which no `by` names"
            problems.append(UNUSED_TOKEN_WEIGHT.at(where, got=got, name=name))
    return problems


def weighers_of(instances: Instances, weight: Weight | None) -> tuple[TokenWeight, ...]:
    """Returns the plugins that weight the rows of the next-token loss, by its weight in a stage."""
    found = [instances.components[name] for name in (weight.by or () if weight is not None else ())]
    return tuple(component for component in found if isinstance(component, TokenWeight))


def needs(recipe: Recipe, instances: Instances, plan: StagePlan, dims: Dims) -> list[Problem]:
    """Returns the problems of needs: missing views, layers or tokens, and views that no term reads."""
    problems = []
    views = {"main": ("",), **{maker.name: maker.roles for maker in plan.makers}}
    provided = {
        token: s.name
        for s in instances.components.values()
        if isinstance(s, TokenStrategy)
        for token in s.provides
    }
    for term in plan.readers:
        where = recipe.where(f"plugins.{term.name}")
        if not plan.reference and any(map(reads_reference, plugin_calls.needs(term))):
            got = f"`{term.name}` reads a reference, and stage `{plan.stage}` has none"
            problems.append(REFERENCE.at(recipe.where(f"stages.{plan.stage}"), got=got, stage=plan.stage))
        for need in plugin_calls.needs(term):
            problems += _need(where, term, need, views, provided, dims)
            if isinstance(need, VisionAt):
                problems += _vision(where, need, recipe, recipe.stages[plan.stage])
                problems += _patches(where, need, plan.reducer, dims)
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
    provided: Mapping[str, str],
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
    for each in (select, need.k) if isinstance(need, ATTENTION) else (select,):
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


def _patches(where: str, need: VisionAt, found: ImageReducer | None, dims: Dims) -> list[Problem]:
    """Returns a problem for a need that reads the encoder's features at rows without fixed patches."""
    if need.stage != "encoder" or found is None or plugin_calls.patches(found, dims) is not None:
        return []
    return [PATCHES.at(where, got=f"features of the encoder, and rows of `{found.name}`")]


def reducer_of(recipe: Recipe, instances: Instances) -> ImageReducer | None:
    """Returns the plugin that `model.connector.reduce` names, if it is opened and a reducer."""
    connector = recipe.model.connector
    found = instances.components.get(connector.reduce) if connector and connector.reduce else None
    return found if isinstance(found, ImageReducer) else None


def reducer(recipe: Recipe, instances: Instances, dims: Dims) -> list[Problem]:
    """Returns the problems of the image reducer: a plugin of another kind, and faults of its methods. It is tried
    on random features, without the connector."""
    name = recipe.model.connector.reduce if recipe.model.connector else None
    if name is None:
        return []
    found = reducer_of(recipe, instances)
    if found is None:
        return [NOT_A_REDUCER.at(recipe.where("model.connector.reduce"), got=f"`{name}`")]
    assert recipe.model.connector is not None, "it names the reducer"
    alone = recipe.model.connector.kind == "none"
    if alone is not found.connects:
        got = f"`{recipe.model.connector.kind}`, and `{name}` with `connects = {found.connects!r}`"
        return [CONNECTS.at(recipe.where("model.connector.kind"), got=got)]
    tried = Tried(lambda: _try_reducer(found, dims, alone))
    return [] if tried.error is None else list(tried.error.problems)


def _try_reducer(found: ImageReducer, dims: Dims, alone: bool) -> None:
    """Raises the faults of a reducer on random features. `alone`: without a connector."""
    rows = ReducedRows(found, plugin_calls.modules(found, dims), dims)
    seen_IND = torch.randn(2, dims.image.tokens, dims.image.width, generator=torch.Generator().manual_seed(0))

    def connect(x: Tensor) -> Tensor:
        return x if alone else F.linear(x, torch.ones(1, dims.image.width)).expand(*x.shape[:-1], dims.width)

    with torch.no_grad():
        rows.project(seen_IND, connect)


def tiles(recipe: Recipe, dims: Dims) -> list[Problem]:
    """Returns the problems of images that are cut into tiles: sources without the learned newline row, which the chat
    format gives the model; images that cannot fit into the context; rows that are no tokens of the encoder."""
    fits = {f"data.{name}.image_fit": source.image_fit for name, source in recipe.data.items()}
    fits = {"model.chat.image_fit": recipe.model.chat.image_fit, **fits}
    found = {key: fit for key, fit in fits.items() if isinstance(fit, AnyRes)}
    connector, problems = recipe.model.connector, []
    if not found:
        return []
    if connector is None:
        return [TILES.at(recipe.where(key), got="a model without an encoder") for key in found]
    if "model.chat.image_fit" not in found:
        where, expected = recipe.where("model.chat.image_fit"), "`{kind: anyres, ...}`, as in the data"
        fix = "Write the section of the data here too: the model needs a learned newline row."
        problems.append(CONFLICT.at(where, got=str(fits["model.chat.image_fit"]), expected=expected, fix=fix))
    if connector.reduce is not None or CONNECTORS[connector.kind].rows(dims.image.grid) != dims.image.tokens:
        got = f"connector {connector.kind}" + (
            f" with `reduce: {connector.reduce}`" if connector.reduce else ""
        )
        problems.append(TILES.at(recipe.where("model.connector"), got=got))
    for key, fit in found.items():
        rows, grid = max((most_rows(grid, dims.image.grid), grid) for grid in fit.used)
        if rows >= recipe.model.text.context:
            got = f"{rows} rows of an image on {grid[0]} x {grid[1]} tiles"
            fix = "Raise `model.text.context`, or lower `max_tiles`."
            expected = f"fewer than the context, which is {recipe.model.text.context}"
            problems.append(CONFLICT.at(recipe.where(key), got=got, expected=expected, fix=fix))
    return problems


def tile_needs(recipe: Recipe, plan: StagePlan) -> list[Problem]:
    """Returns the problems of terms that read features of images, in a stage with images that are cut into tiles."""
    fits = [recipe.data[name].image_fit for name in recipe.stages[plan.stage].data]
    if not any(isinstance(fit, AnyRes) for fit in fits):
        return []
    where = recipe.where(f"stages.{plan.stage}.data")
    reading = [
        r.name
        for r in plan.readers
        if any(isinstance(n, VisionAt | TeacherAt) for n in plugin_calls.needs(r))
    ]
    found = [TILES.at(where, got=f"`{name}`, which reads features of images") for name in reading]
    return found + [TILES.at(where, got=f"the teacher `{name}`") for name in plan.all_teachers]


def _targets(select: Select) -> bool:
    """Returns whether a selector can select targets: supervised text of a response."""
    return (
        select.kind in (None, "text")
        and select.role in (None, "response")
        and select.token_name is None
        and select.supervised is not False
        and select.shift == 0
    )


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


def _reads_own_view(term: Term) -> bool:
    return any(selector(need).view == term.name for need in plugin_calls.needs(term))


def reach(recipe: Recipe, instances: Instances, plan: StagePlan) -> list[Problem]:
    """Applies the attention rule to a probe layout: each row that a term reads must be able to attend to
    an image. Returns the problems."""
    problems = []
    for term in plan.readers:
        for need in plugin_calls.needs(term):
            select = selector(need)
            if term.name in instances.unreachable or (
                select.token_name is None and not isinstance(need, ATTENTION)
            ):
                continue
            if not _attends_to_image(plan, need):
                where = recipe.where(f"plugins.{term.name}")
                what = f"token `{select.token_name}`" if select.token_name else "rows"
                got = f"`{term.name}` reads {what} before the image, which cannot attend to the image"
                problems.append(UNREACHABLE.at(where, got=got))
    return problems


LAST_ID = 9


def probe_layout() -> Layout:
    """Returns a layout in the order of the chat templates: BOS, question, image, question, response."""
    image = Span(kind="image", n=4)
    return (
        text((1,), "bos"),
        text((5, 6), "user"),
        image,
        text((7,), "user"),
        text((8, LAST_ID), "response", supervised=True, turn=-1),
    )


def _attends_to_image(plan: StagePlan, need: Need) -> bool:
    select = selector(need)
    view = View(sample=PROBE, name=select.view)
    edits = [
        (s.name, e)
        for s, views in plan.strategies
        if views is None or select.view in views
        for e in plugin_calls.edit(s, view)
    ]
    layout = insert_tokens(probe_layout(), edits, lambda token: LAST_ID)
    if not len(select.positions(layout)):  # no such token here: the dry run looks at records
        return True
    see_TT = roots([row_count(layout)]).see()
    key = need.k if isinstance(need, ATTENTION) else type(select)(kind="image")
    return bool(see_TT[select.positions(layout)][:, key.positions(layout)].any())
