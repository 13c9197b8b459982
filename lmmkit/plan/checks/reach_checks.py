"""Checks that rows which terms read can attend to an image, by the attention rule on a probe layout."""

from __future__ import annotations

from lmmkit import plugin_calls
from lmmkit.api.layout import Layout, Span, insert_tokens, row_count, text
from lmmkit.api.needs import ATTENTION, Need, Select, selector
from lmmkit.api.sample import View
from lmmkit.attention.forest import roots
from lmmkit.errors import Problem
from lmmkit.errors.plan import UNREACHABLE
from lmmkit.plan.checks.token_checks import PROBE
from lmmkit.plan.instances import Instances
from lmmkit.plan.stage_plan import StagePlan
from lmmkit.recipe import Recipe

LAST_ID = 9


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
    key = need.k if isinstance(need, ATTENTION) else Select(kind="image")
    return bool(see_TT[select.positions(layout)][:, key.positions(layout)].any())


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
