"""Finds and loads plugins with pluggy, and returns their component classes.

An entry point of the group `lmmkit.plugins` has the name of a component, so metadata is enough to
find it, and only the plugins that a recipe names are imported. A local file runs only if the user
trusts files on the command line. The component hook is called when plugins are loaded, never in a step.
"""

from __future__ import annotations

import dataclasses
import inspect
import logging
import os
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from types import MappingProxyType, ModuleType
from typing import Any

import pluggy

from lmmkit.api.components import API, CHANGES, Component
from lmmkit.api.plugin_files import file_hash, load_file
from lmmkit.errors import Problem, UserError, did_you_mean, raise_all
from lmmkit.errors.plan import (
    API_VERSION,
    BAD_HOOK,
    LOAD_ERROR,
    NO_COMPONENT,
    NO_FILE,
    NO_HOOKIMPL,
    NO_OBSERVER_HOOK,
    NOT_A_COMPONENT,
    TWO_PACKAGES,
    UNKNOWN_COMPONENT,
    UNTRUSTED_FILE,
)
from lmmkit.memory_faults import is_out_of_memory

GROUP = "lmmkit.plugins"
OBSERVER_HOOKS = ("lmmkit_started", "lmmkit_logged")
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
        self._notify("lmmkit_started", run=run, recipe=recipe, step=step)

    def logged(self, step: int, scalars: Mapping[str, float]) -> None:
        """Sends the figures of a step to all observers."""
        self._notify("lmmkit_logged", step=step, scalars=scalars)

    def _notify(self, hook: str, **arguments: Any) -> None:
        """Calls all observers. One that raises is logged and not called again; the run continues."""
        for observer in getattr(self.manager.hook, hook).get_hookimpls():
            try:
                observer.function(*(arguments[name] for name in observer.argnames))
            except Exception as error:
                name = observer.plugin_name
                _log.warning("%s of %s raised %s; it is not called again", hook, name, _text(error))
                self.manager.unregister(name=name)


def installed() -> dict[str, EntryPoint]:
    """Returns entry points by component name. Imports nothing."""
    return {name: points[0] for name, points in _offered().items()}


def _offered() -> dict[str, list[EntryPoint]]:
    """Returns all entry points by component name: several if several distributions use one name."""
    offered: dict[str, list[EntryPoint]] = {}
    for point in entry_points(group=GROUP):
        offered.setdefault(point.name, []).append(point)
    return offered


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
        where: the position in the recipe of each instance, for messages.
        trust_files: allows local files to run.
        base: the folder that local files are relative to.
        observers: the position in the recipe of each observer, by its name or file.

    Raises:
        UserError: lists every instance and observer that cannot be loaded.
    """
    loader = _Loader(trust_files, base)
    components, origins = {}, []
    problems: list[Problem] = []
    for instance, use in wanted.items():
        try:
            components[instance] = loader.component(where[instance], instance, use)
        except UserError as error:
            problems += error.problems
    for use, position in observers.items():
        try:
            origins.append(loader.observer(position, use))
        except UserError as error:
            problems += error.problems
    raise_all(problems)
    return Registry(loader.manager, components, tuple(origins))


def file_components(use: str | os.PathLike[str], *, trust_files: bool = False) -> dict[str, FoundComponent]:
    """Returns the components that a local file offers, by name. `use`: the file, or FILE.py:NAME for one of them.

    Raises `UserError` if there are problems, no component, or none of this name.
    """
    path, _, only = os.fspath(use).partition(":")
    plugin = _Loader(trust_files, Path()).plugin(path, path)
    if not plugin.components:
        raise UserError(
            NO_COMPONENT.at(
                path, got="a file without a component", nearest="Offer one in the hook `lmmkit_components`."
            )
        )
    return {name: _checked(path, plugin, name) for name in ([only] if only else plugin.components)}


@dataclass(frozen=True)
class _Plugin:
    """Describes a registered plugin: its name in the manager, its origin, and the components it offers."""

    name: str
    origin: str
    components: Mapping[str, Any]


class _Loader:
    """Imports plugins and registers them with pluggy. All its methods raise `UserError` at `where`."""

    def __init__(self, trust_files: bool, base: Path):
        self.trust_files, self.base = trust_files, base
        self.offered = _offered()
        self.manager = pluggy.PluginManager("lmmkit")
        self.manager.add_hookspecs(Hooks)

    def component(self, where: str, instance: str, use: str) -> FoundComponent:
        """Returns the component that `use` names; for a file without a component's name, `instance`."""
        name = (use.partition(":")[2] or instance) if ".py" in use else use
        plugin = self.plugin(where, use)
        if not plugin.components and self._observes(plugin):
            nearest = "Observers are named in `output.observers` of a recipe."
            raise UserError(NO_COMPONENT.at(where, got=f"an observer, {plugin.origin}", nearest=nearest))
        return _checked(where, plugin, name)

    def observer(self, where: str, use: str) -> str:
        """Returns the origin of an observer. Raises `UserError` if it cannot be loaded, or has no observer hook."""
        plugin = self.plugin(where, use)
        if not self._observes(plugin):
            got, hooks = f"{plugin.origin} without observer hooks", ", ".join(OBSERVER_HOOKS)
            raise UserError(NO_OBSERVER_HOOK.at(where, got=got, hooks=hooks))
        return plugin.origin

    def _observes(self, plugin: _Plugin) -> bool:
        """Returns whether a plugin has a hook of an observer."""
        return any(self._implementation(hook, plugin.name) for hook in OBSERVER_HOOKS)

    def plugin(self, where: str, use: str) -> _Plugin:
        """Imports and registers the plugin that `use` names, unless it is registered."""
        if ".py" in use:
            name = use.partition(":")[0]
            module, source = self._file(where, self.base / name), f"{name} {file_hash(self.base / name)}"
        else:
            module, source = self._installed(where, use)
            name = module.__name__
        if not self.manager.is_registered(module):
            self._register(where, module, name, source)
        name = self.manager.get_name(module) or name
        offer = self._implementation("lmmkit_components", name)
        with _loading(where, source):
            components: Any = offer.function() if offer else {}
            return _Plugin(name, source, dict(components))

    def _installed(self, where: str, name: str) -> tuple[ModuleType, str]:
        """Returns the module of an installed component, and its origin."""
        if name not in self.offered:
            got, nearest = f"component `{name}`", did_you_mean(name, self.offered)
            raise UserError(UNKNOWN_COMPONENT.at(where, got=got, nearest=nearest))
        point, *others = self.offered[name]
        if others:
            sources = ", ".join(sorted(map(origin, self.offered[name])))
            raise UserError(TWO_PACKAGES.at(where, got=f"`{name}` in {sources}"))
        source = origin(point)
        with _loading(where, f"`{name}` of {source}"):
            return point.load(), source

    def _file(self, where: str, path: Path) -> ModuleType:
        """Returns the module of a local file."""
        if not self.trust_files:
            raise UserError(UNTRUSTED_FILE.at(where, got=f"the local file {path}", path=path))
        if not path.is_file() or path.suffix != ".py":
            raise UserError(NO_FILE.at(where, got=f"{'the' if path.is_file() else 'no'} file {path}"))
        with _loading(where, path):
            return load_file(path)

    def _register(self, where: str, module: ModuleType, name: str, source: str) -> None:
        """Registers a module as `name`, after all its hooks are checked."""
        for function, value in vars(module).items():
            named_like_a_hook = function.startswith("lmmkit_") and inspect.isfunction(value)
            if named_like_a_hook and self.manager.parse_hookimpl_opts(module, function) is None:
                raise UserError(NO_HOOKIMPL.at(where, got=f"function `{function}` of {source}"))
        try:
            self.manager.register(module, name=name)
            self.manager.check_pending()
        except pluggy.PluginValidationError as error:
            self.manager.unregister(name=name)  # `check_pending` would report it again for later plugins
            raise UserError(BAD_HOOK.at(where, got=str(error).replace("\n", " "))) from error

    def _implementation(self, hook: str, plugin: str) -> pluggy.HookImpl | None:
        """Returns a plugin's implementation of a hook, or None."""
        found = getattr(self.manager.hook, hook).get_hookimpls()
        return next((each for each in found if each.plugin_name == plugin), None)


def _checked(where: str, plugin: _Plugin, name: str) -> FoundComponent:
    """Returns the component `name` of a plugin. Raises `UserError` if it is missing or cannot be used."""
    if name not in plugin.components:
        got, nearest = f"component `{name}` of {plugin.origin}", did_you_mean(name, plugin.components)
        raise UserError(NO_COMPONENT.at(where, got=got, nearest=nearest))
    cls = plugin.components[name]
    if not (inspect.isclass(cls) and issubclass(cls, Component) and "__dataclass_fields__" in vars(cls)):
        raise UserError(NOT_A_COMPONENT.at(where, got=f"`{name}` of {plugin.origin}: {cls!r}"))
    if cls.api != API:
        newer = [text for version, text in CHANGES.items() if isinstance(cls.api, int) and cls.api < version]
        changes = f"Changed since: {'; '.join(newer)}." if newer else ""
        got = f"`{name}` for API version {cls.api}"
        raise UserError(API_VERSION.at(where, got=got, api=API, changes=changes))
    return FoundComponent(cls, plugin.origin)


@contextmanager
def _loading(where: str, plugin: object) -> Iterator[None]:
    """Reports any exception of a plugin's code as a problem at `where`, but one about too little memory."""
    try:
        yield
    except Exception as error:
        if is_out_of_memory(error):
            raise
        raise UserError(LOAD_ERROR.at(where, got=_text(error), plugin=plugin)) from error


def _text(error: Exception) -> str:
    return f"{type(error).__name__}: {error}"


def setting_fields(cls: type[Component]) -> Iterable[dataclasses.Field]:
    """Returns the fields of a component that are recipe keys."""
    return [field for field in dataclasses.fields(cls) if field.name != "name"]
