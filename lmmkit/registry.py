"""Finds and loads plugins with pluggy, and returns their component classes.

An entry point of the group `lmmkit.plugins` has the name of a component, so metadata is enough to
find it, and only the plugins that a recipe names are imported. A local file runs only if the user
trusts files on the command line. The component hook is called when plugins are loaded, never in a step.
"""

from __future__ import annotations

import dataclasses
import inspect
import logging
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from types import MappingProxyType, ModuleType
from typing import Any

import pluggy

from lmmkit.api.components import API, Component
from lmmkit.api.plugin_files import file_hash, load_file
from lmmkit.errors import Problem, UserError, did_you_mean, raise_all
from lmmkit.errors.plan import (
    ABSENT,
    BAD_HOOK,
    BROKEN,
    DEAF,
    KIND,
    NO_FILE,
    PLUGIN_API,
    UNKNOWN,
    UNMARKED,
    UNTRUSTED_FILE,
)

GROUP = "lmmkit.plugins"
LISTENING = ("lmmkit_started", "lmmkit_logged")
NONE: Mapping[str, str] = MappingProxyType({})
hookspec = pluggy.HookspecMarker("lmmkit")
_log = logging.getLogger("lmmkit")


class Hooks:
    """Declares the hooks that a plugin module may implement."""

    @hookspec
    def lmmkit_components(self) -> Mapping[str, type[Component]]:
        """Returns component classes by name."""
        ...

    @hookspec
    def lmmkit_started(self, run: str, recipe: Mapping[str, Any], step: int) -> None:
        """Receives on rank 0, before the first step, the run folder, the recipe with all defaults, and the
        number of finished steps (0, or that of a resumed run)."""
        ...

    @hookspec
    def lmmkit_logged(self, step: int, scalars: Mapping[str, float]) -> None:
        """Receives on rank 0 the figures of a step after they are written. Must not change anything."""
        ...


@dataclass(frozen=True)
class FoundComponent:
    """Holds a component class and its origin: a distribution and version, or a path and the file's hash."""

    cls: type[Component]
    origin: str


@dataclass(frozen=True)
class Registry:
    """Holds the plugins of one run: their manager, the class of each instance, the origins of observers."""

    manager: pluggy.PluginManager
    components: Mapping[str, FoundComponent]
    observers: tuple[str, ...] = ()

    def started(self, run: str, recipe: Mapping[str, Any], step: int) -> None:
        """Notifies all observers that the run starts or resumes."""
        self._tell("lmmkit_started", {"run": run, "recipe": recipe, "step": step})

    def logged(self, step: int, scalars: Mapping[str, float]) -> None:
        """Sends the figures of a step to all observers."""
        self._tell("lmmkit_logged", {"step": step, "scalars": scalars})

    def _tell(self, hook: str, said: Mapping[str, Any]) -> None:
        """Calls all observers. One that raises is logged and not called again; the run continues."""
        for listener in getattr(self.manager.hook, hook).get_hookimpls():
            try:
                listener.function(*(said[name] for name in listener.argnames))
            except Exception as error:
                name, raised = listener.plugin_name, _named(error)
                _log.warning("%s of %s raised %s; it is not called again", hook, name, raised)
                self.manager.unregister(listener.plugin)


def installed() -> dict[str, EntryPoint]:
    """Returns entry points by component name. Imports nothing."""
    return {point.name: point for point in entry_points(group=GROUP)}


def origin(point: EntryPoint) -> str:
    """Returns 'distribution version' of an entry point."""
    return f"{point.dist.name} {point.dist.version}" if point.dist else point.value


def open_registry(
    wanted: Mapping[str, str], *, where: Mapping[str, str], trust_files: bool = False, base: Path = Path(),
    observers: Mapping[str, str] = NONE,
) -> Registry:  # fmt: skip
    """Imports the plugins of the given instances and finds their component classes; imports observers.

    Args:
        wanted: the component of each instance: a name, `path.py` or `path.py:component`.
        where: the place in the recipe of each instance, for messages.
        trust_files: allows local files to run.
        base: the folder that local files are relative to.
        observers: the place in the recipe of each observer, by its name or file.

    Raises:
        UserError: lists every instance and observer that cannot be loaded.
    """
    manager = pluggy.PluginManager("lmmkit")
    manager.add_hookspecs(Hooks)
    points, components = installed(), {}
    problems: list[Problem] = []
    for instance, use in wanted.items():
        try:
            module, name, source = _module(where[instance], instance, use, points, trust_files, base)
            components[instance] = FoundComponent(
                _component(where[instance], manager, module, name, source), source
            )
        except UserError as error:
            problems += error.problems
    pretrained = []
    for use, place in observers.items():
        try:
            module, _, source = _module(place, use, use, points, trust_files, base)
            _offered(place, manager, module, source)
            if not any(hasattr(module, hook) for hook in LISTENING):
                got, hooks = f"{source} without observer hooks", ", ".join(LISTENING)
                raise UserError(DEAF.at(place, got=got, hooks=hooks))
            pretrained.append(source)
        except UserError as error:
            problems += error.problems
    raise_all(problems)
    return Registry(manager, components, tuple(pretrained))


def file_components(path: Path, *, trust_files: bool = False) -> dict[str, FoundComponent]:
    """Returns the components that a local file offers, by name. Raises `UserError` if there are problems."""
    manager = pluggy.PluginManager("lmmkit")
    manager.add_hookspecs(Hooks)
    where = str(path)
    module, source = _file(where, path, trust_files), f"{path} {file_hash(path)}"
    return {
        name: FoundComponent(_component(where, manager, module, name, source), source)
        for name in _offered(where, manager, module, source)
    }


def _module(where, instance, use, points, trust_files, base) -> tuple[ModuleType, str, str]:
    """Returns (module, component name, origin). Raises `UserError` at `where`, like all below."""
    if ".py" in use:
        path, _, name = use.partition(":")
        return _file(where, base / path, trust_files), name or instance, f"{path} {file_hash(base / path)}"
    if use not in points:
        raise UserError(UNKNOWN.at(where, got=f"component `{use}`", nearest=did_you_mean(use, points)))
    try:
        return points[use].load(), use, origin(points[use])
    except Exception as error:
        plugin = f"`{use}` of {origin(points[use])}"
        raise UserError(BROKEN.at(where, got=_named(error), plugin=plugin)) from error


def _file(where: str, path: Path, trusted: bool) -> ModuleType:
    if not trusted:
        raise UserError(UNTRUSTED_FILE.at(where, got=f"the local file {path}", path=path))
    if not path.is_file() or path.suffix != ".py":
        raise UserError(NO_FILE.at(where, got=f"{'the' if path.is_file() else 'no'} file {path}"))
    try:
        return load_file(path)
    except Exception as error:
        raise UserError(BROKEN.at(where, got=_named(error), plugin=path)) from error


def _named(error: Exception) -> str:
    return f"{type(error).__name__}: {error}"


def _offered(where, manager, module, source) -> dict[str, type[Component]]:
    """Returns the components that a module offers, after checking all its hooks."""
    for function, value in vars(module).items():
        if function.startswith("lmmkit_") and inspect.isfunction(value) and not hasattr(value, "lmmkit_impl"):
            raise UserError(UNMARKED.at(where, got=f"function `{function}` of {source}"))
    if not manager.is_registered(module):
        try:
            manager.register(module)
            manager.check_pending()
        except pluggy.PluginValidationError as error:
            raise UserError(BAD_HOOK.at(where, got=str(error))) from error
    return dict(module.lmmkit_components()) if hasattr(module, "lmmkit_components") else {}


def _component(where, manager, module, name, source) -> type[Component]:
    offered = _offered(where, manager, module, source)
    if name not in offered:
        got, nearest = f"component `{name}` of {source}", did_you_mean(name, offered)
        raise UserError(ABSENT.at(where, got=got, nearest=nearest))
    cls = offered[name]
    if not (inspect.isclass(cls) and issubclass(cls, Component) and dataclasses.is_dataclass(cls)):
        raise UserError(KIND.at(where, got=f"`{name}` of {source}: {cls!r}"))
    if cls.api != API:
        raise UserError(PLUGIN_API.at(where, got=f"`{name}` for API version {cls.api}", api=API))
    return cls


def setting_fields(cls: type[Component]) -> Iterable[dataclasses.Field]:
    """Returns the fields of a component that are recipe keys."""
    return [field for field in dataclasses.fields(cls) if field.name != "name"]
