"""For the tests of a plugin: `dry_run` checks a component, `fake_ctx` gives its methods something to compute with.

Both use samples of drawn scenes, and draw what a term reads from the model. Neither runs a model.
"""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from lmmkit.api.components import Component, Reader, ViewMaker
from lmmkit.api.ctx import Ctx
from lmmkit.api.needs import Need
from lmmkit.errors import Problem, UserError
from lmmkit.plan.dry_run import run as running
from lmmkit.plan.dry_run.module_checks import ModuleSubject
from lmmkit.plan.dry_run.rehearsal import prepared_for
from lmmkit.plan.dry_run.second_process import other_views
from lmmkit.plan.dry_run.term_subject import Group

STAGE = "only"


def dry_run(*components: Component, second_process: bool = False) -> list[Problem]:
    """Returns the problems of components that are used together; empty if there are none.

    `second_process`: make the views of tasks in another process too, which takes seconds.
    """
    try:
        prepared = prepared_for({component.name: component for component in components})
    except UserError as error:  # the plan refuses them
        return list(error.problems)
    problems = running.plugin_problems(prepared)
    if second_process and not problems:
        tasks = [component for component in components if isinstance(component, ViewMaker)]
        problems = other_views({t.name: running.view_subject(prepared, STAGE, t) for t in tasks})
    return problems


def fake_ctx(
    term: Reader, *others: Component, samples: int = 4, taps: Mapping[Need, Tensor] | None = None
) -> Ctx:
    """Returns what the methods of a term get, for a micro-batch of drawn scenes.

    Args:
        term: the loss, task or weight, built with its settings.
        others: components that it is used with, such as the task whose views it reads.
        samples: the number of samples in the micro-batch, at most 12.
        taps: tensors of needs. The others are drawn, with the shapes that a model of width 48 gives.
    """
    prepared = prepared_for({component.name: component for component in (term, *others)})
    module = ModuleSubject(term, prepared.dims, prepared.recipe.seed).module
    subject = running.term_subject(prepared, STAGE, term, module)
    batch, drawn = subject.drawn(subject.samples[:samples])
    return subject.ctx(
        Group(batch, {need: tap.requires_grad_() for need, tap in drawn.items()} | dict(taps or {}))
    )
