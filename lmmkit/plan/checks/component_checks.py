"""Checks of what every plugin of a recipe has: methods that the plan calls, settings, and a name."""

from __future__ import annotations

from lmmkit import plugin_calls
from lmmkit.api.components import Reader, Term, TokenStrategy
from lmmkit.api.model_info import Dims
from lmmkit.errors import Problem, Tried, raise_all
from lmmkit.errors.plan import SETTING
from lmmkit.plan.checks.need_checks import selects
from lmmkit.plan.instances import Instances
from lmmkit.recipe import Recipe


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


def settings(recipe: Recipe, instances: Instances, dims: Dims) -> list[Problem]:
    """Returns the problems of plugin settings that do not fit the model's sizes."""
    problems = []
    for name, component in instances.components.items():
        if found := plugin_calls.check(component, dims):
            key = found.partition(":")[0]
            problems.append(SETTING.at(recipe.where(f"plugins.{name}.{key}"), got=found))
    return problems
