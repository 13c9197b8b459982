"""Each check is a pure function of recipe, parts and plan to problems."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from lmmkit.dims import Dims
from lmmkit.errors import Problem, did_you_mean
from lmmkit.forest import roots
from lmmkit.needs import AttnMass, Need, selector
from lmmkit.parts import AuxTask, Term, TokenStrategy
from lmmkit.plan.components import Parts
from lmmkit.recipe import Recipe
from lmmkit.sample import Image, Sample, Turn, View
from lmmkit.spans import Layout, Span, merge, rows, text

if TYPE_CHECKING:
    from lmmkit.plan.compile import StagePlan


PROBE = Sample(
    key="probe",
    images=(Image("probe"),),
    turns=(Turn("user", "what is this", images=1), Turn("assistant", "a red circle")),
)


def settings(recipe: Recipe, parts: Parts, dims: Dims) -> list[Problem]:
    """Settings that do not fit the model's sizes."""
    problems = []
    for name, component in parts.components.items():
        if found := component.check(dims):
            key = found.partition(":")[0]
            where = recipe.where(f"plugins.{name}.{key}")
            problems.append(
                Problem("plan/setting", where, found, "one that fits the model", "Change either.")
            )
    return problems


def losses(recipe: Recipe, parts: Parts) -> list[Problem]:
    """Weights of what is no term, terms that no stage weighs."""
    problems, weighed = [], set()
    terms = list(parts.terms)
    for stage, section in recipe.stages.items():
        for name in section.losses:
            weighed.add(name)
            component = parts.components.get(name)
            if component is not None and not isinstance(component, Term):
                where = recipe.where(f"stages.{stage}.losses.{name}")
                mend = f"Take the line out: tokens act through the terms that read them. {did_you_mean(name, terms)}"
                problems.append(Problem("plan/no-term", where, f"`{name}`, a token strategy", "a term", mend))
    for name in terms:
        if name not in weighed:
            mend = f"Add `{name}: 1.0` to a stage's losses, or take the plugin out."
            where = recipe.where(f"plugins.{name}")
            problems.append(Problem("plan/unweighed", where, f"`{name}`", "a weight in some stage", mend))
    return problems


def needs(recipe: Recipe, parts: Parts, plan: StagePlan, dims: Dims) -> list[Problem]:
    """Needs of views that are not made, of layers that are not there, of marks nobody provides."""
    problems = []
    views = {"main", *(task.name for task in plan.tasks)}
    provided = {
        m: s.name for s in parts.components.values() if isinstance(s, TokenStrategy) for m in s.provides
    }
    for term in plan.terms:
        where = recipe.where(f"plugins.{term.name}")
        for need in term.needs:
            problems += _need(where, term, need, views, provided, dims)
        if isinstance(term, AuxTask) and not term.learns_text and not _reads_own(term):
            mend = "Declare a need on Sel(view=self.name), or learn its text."
            problems.append(Problem("plan/unread-view", where, f"views of `{term.name}`", "a reader", mend))
    masses = {need.k for need in plan.needs if isinstance(need, AttnMass)}
    if len(masses) > 1:
        where = recipe.where(f"stages.{plan.stage}.losses")
        got, mend = f"attention mass on {len(masses)} kinds of keys", "Weigh one of them a stage."
        problems.append(Problem("plan/two-masses", where, got, "one kind of keys a stage", mend))
    return problems


def _need(
    where: str, term: Term, need: Need, views: set[str], provided: Mapping[str, str], dims: Dims
) -> list[Problem]:
    problems = []
    sel = selector(need)
    if sel.view not in views:
        got, mend = (
            f"a need on view `{sel.view}`",
            f"Weigh that task in the stage too. {did_you_mean(sel.view, views)}",
        )
        problems.append(Problem("plan/no-view", where, got, "a view that the stage makes", mend))
    if sel.mark is not None and sel.mark not in provided:
        got = f"`{term.name}` reads mark `{sel.mark}`, which no plugin provides"
        mend = "Add a token strategy that does (for `drt`: directed_token) under plugins."
        problems.append(Problem("plan/unprovided-mark", where, got, "a provided mark", mend))
    if isinstance(need, AttnMass) and need.layers != "all":
        outside = [layer for layer in need.layers if not 0 <= layer < dims.layers]
        if outside or not need.layers or len(set(need.layers)) < len(need.layers):
            got = f"layers {list(need.layers)}"
            want = f"`all`, or numbers from 0 to {dims.layers - 1}, each once"
            problems.append(Problem("plan/layers", where, got, want, "Mend `layers`."))
    return problems


def _reads_own(term: Term) -> bool:
    return any(selector(need).view == term.name for need in term.needs)


def marks(recipe: Recipe, parts: Parts) -> list[Problem]:
    """Token strategies that no term of the recipe reads; one mark from two of them."""
    problems, owner = [], {}
    read = {selector(need).mark for term in parts.terms.values() for need in term.needs}
    for name, component in parts.components.items():
        if not isinstance(component, TokenStrategy):
            continue
        where = recipe.where(f"plugins.{name}")
        if not read & set(component.provides):
            got, mend = (
                f"marks {', '.join(component.provides)}",
                "Add a term that reads them, or take the plugin out.",
            )
            problems.append(Problem("plan/unread-mark", where, got, "a term that reads them", mend))
        for mark in component.provides:
            if mark in owner:
                got = f"mark `{mark}`, also provided by `{owner[mark]}`"
                problems.append(Problem("plan/mark-twice", where, got, "one provider a mark", "Remove one."))
            owner[mark] = name
    return problems


def reach(recipe: Recipe, parts: Parts, plan: StagePlan) -> list[Problem]:
    """Runs THE RULE on a probe layout: a row that is read must see an image."""
    problems = []
    for term in plan.terms:
        for need in term.needs:
            sel = selector(need)
            if term.name in parts.unreachable or (sel.mark is None and not isinstance(need, AttnMass)):
                continue
            if not _sees_image(plan, need):
                where = recipe.where(f"plugins.{term.name}")
                what = f"mark `{sel.mark}`" if sel.mark else "rows"
                got = f"`{term.name}` reads {what} that stand before the image and can never see it"
                mend = "Move the token (directed_token.place: end), or set `allow_unreachable: true`."
                problems.append(Problem("plan/unreachable", where, got, "rows that see the image", mend))
    return problems


def probe_layout() -> Layout:
    """A sequence as the templates make them: BOS, question, image, question, response, end."""
    image = Span(kind="image", n=4)
    return (
        text((1,), "bos"),
        text((5, 6), "user"),
        image,
        text((7,), "user"),
        text((8, 9), "response", learn=True),
    )


def _sees_image(plan: StagePlan, need: Need) -> bool:
    sel = selector(need)
    view = View(sample=PROBE, name=sel.view)
    edits = [
        (s.name, e)
        for s, views in plan.strategies
        if views is None or sel.view in views
        for e in s.edit(view)
    ]
    layout = merge(probe_layout(), edits)
    see_TT = roots([rows(layout)]).see()
    key = need.k if isinstance(need, AttnMass) else type(sel)(kind="image")
    return bool(see_TT[sel.places(layout)][:, key.places(layout)].any())
