"""Calls that every component may get: its settings are checked, its module is built and filled."""

from __future__ import annotations

from collections.abc import Callable

from torch import nn

from lmmkit.api.components import Component
from lmmkit.api.model_info import Dims
from lmmkit.plugin_calls.guard import calling, returned, shown


def check(component: Component, dims: Dims) -> str:
    """Returns which settings of a component do not fit the model; empty if all do."""
    with calling(component.name, "check", component):
        found = component.check(dims)
    if not isinstance(found, str):
        raise returned(component.name, "check", component, shown(found), "a text, empty if all settings fit")
    return found


def modules(component: Component, dims: Dims) -> nn.Module | None:
    """Returns the module of a component."""
    with calling(component.name, "modules", component):
        found = component.modules(dims)
    if not isinstance(found, nn.Module | None):
        raise returned(component.name, "modules", component, shown(found), "an nn.Module or None")
    for name, parameter in found.named_parameters() if found is not None else ():
        if not parameter.ndim:
            got = f"a module whose parameter `{name}` has no dimension"
            raise returned(component.name, "modules", component, got, "a shape of [1], which ranks can share")
    return found


def reset(name: str, part: nn.Module, fill: Callable[[], object]) -> None:
    """Calls `fill`, the `reset_parameters` of a module of a plugin."""
    with calling(name, "reset_parameters", part):
        fill()
