"""Where plugins come in: pluggy at the door, component classes beyond it.

Entry points of the group `lmmkit.plugins` are named after COMPONENTS, so metadata alone finds
them and only what a recipe names is imported. A local file runs only where the user trusts files
on the command line. Hooks register; none is ever called per step.
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

from lmmkit.errors import Problem, UserError, did_you_mean, raise_all
from lmmkit.local import file_hash, load_file
from lmmkit.parts import API, Component

GROUP = "lmmkit.plugins"
LISTENING = ("lmmkit_started", "lmmkit_logged")
NONE: Mapping[str, str] = MappingProxyType({})
hookspec = pluggy.HookspecMarker("lmmkit")
_log = logging.getLogger("lmmkit")


class Hooks:
    """What a plugin module may implement."""

    @hookspec
    def lmmkit_components(self) -> Mapping[str, type[Component]]:
        """Component classes by name."""
        ...

    @hookspec
    def lmmkit_started(self, run: str, recipe: Mapping[str, Any], step: int) -> None:
        """Told on rank 0 before the first step: the run folder, the recipe with every default, and the
        step that is behind it (0, or that of a resumed run)."""
        ...

    @hookspec
    def lmmkit_logged(self, step: int, scalars: Mapping[str, float]) -> None:
        """Told on rank 0 after a step's figures are written; must not change anything."""
        ...


@dataclass(frozen=True)
class Found:
    """A component class and where it came from (a distribution and version, or a file's hash)."""

    cls: type[Component]
    origin: str


@dataclass(frozen=True)
class Door:
    """The plugins of one run: their manager, the class of every instance, where observers came from."""

    manager: pluggy.PluginManager
    components: Mapping[str, Found]
    observers: tuple[str, ...] = ()

    def started(self, run: str, recipe: Mapping[str, Any], step: int) -> None:
        """Tells all who listen that the run begins, or goes on."""
        self._tell("lmmkit_started", {"run": run, "recipe": recipe, "step": step})

    def logged(self, step: int, scalars: Mapping[str, float]) -> None:
        """Tells all who listen the figures of a step."""
        self._tell("lmmkit_logged", {"step": step, "scalars": scalars})

    def _tell(self, hook: str, said: Mapping[str, Any]) -> None:
        """One that raises is told of and left out from then on: a run does not die of its log."""
        for listener in getattr(self.manager.hook, hook).get_hookimpls():
            try:
                listener.function(*(said[name] for name in listener.argnames))
            except Exception as error:
                got = f"{type(error).__name__}: {error}"
                _log.warning("%s of %s raised %s; it is told no more", hook, listener.plugin_name, got)
                self.manager.unregister(listener.plugin)


def installed() -> dict[str, EntryPoint]:
    """Entry points by component name; nothing is imported."""
    return {point.name: point for point in entry_points(group=GROUP)}


def origin(point: EntryPoint) -> str:
    """'distribution version' of an entry point."""
    return f"{point.dist.name} {point.dist.version}" if point.dist else point.value


def open_door(
    wanted: Mapping[str, str], *, where: Mapping[str, str], trust_files: bool = False, base: Path = Path(),
    observers: Mapping[str, str] = NONE,
) -> Door:  # fmt: skip
    """Imports the plugins of these instances and finds their component classes; imports observers.

    Args:
        wanted: component to use by instance name: a name, or `path.py` or `path.py:component`.
        where: place in the recipe of each instance, for messages.
        trust_files: run local files.
        base: folder that local files are relative to.
        observers: place in the recipe of each plugin that listens, by its name or file.

    Raises:
        UserError: with every instance and observer that cannot be had.
    """
    manager = pluggy.PluginManager("lmmkit")
    manager.add_hookspecs(Hooks)
    points, problems, components = installed(), [], {}
    for instance, use in wanted.items():
        try:
            module, name, source = _module(instance, use, points, trust_files, base)
            components[instance] = Found(_component(manager, module, name, source), source)
        except _Refused as refusal:
            problems.append(Problem(refusal.code, where[instance], refusal.got, refusal.want, refusal.mend))
    origins = []
    for use, place in observers.items():
        try:
            module, _, source = _module(use, use, points, trust_files, base)
            _offered(manager, module, source)
            if not any(hasattr(module, hook) for hook in LISTENING):
                mend = "Write one of them, or take it out of `output.observers`."
                raise _Refused("deaf", f"{source} without {' and '.join(LISTENING)}", "an observer", mend)
            origins.append(source)
        except _Refused as refusal:
            problems.append(Problem(refusal.code, place, refusal.got, refusal.want, refusal.mend))
    raise_all(problems)
    return Door(manager, components, tuple(origins))


class _Refused(Exception):
    def __init__(self, code: str, got: str, want: str, mend: str):
        self.code, self.got, self.want, self.mend = f"plugin/{code}", got, want, mend


def file_components(path: Path, *, trust_files: bool = False) -> dict[str, Found]:
    """Every component that a local file offers, by name; `UserError` where it cannot be had."""
    manager = pluggy.PluginManager("lmmkit")
    manager.add_hookspecs(Hooks)
    try:
        module, source = _file(path, trust_files), f"{path} {file_hash(path)}"
        return {
            name: Found(_component(manager, module, name, source), source)
            for name in _offered(manager, module, source)
        }
    except _Refused as refusal:
        problem = Problem(refusal.code, str(path), refusal.got, refusal.want, refusal.mend)
        raise UserError(problem) from refusal


def _module(instance, use, points, trust_files, base) -> tuple[ModuleType, str, str]:
    """(module, component name, origin)"""
    if ".py" in use:
        path, _, name = use.partition(":")
        return _file(base / path, trust_files), name or instance, f"{path} {file_hash(base / path)}"
    if use not in points:
        mend = f"{did_you_mean(use, points)} `lmmkit plugins list` shows what is installed."
        raise _Refused("unknown", f"component `{use}`", "an installed component", mend)
    try:
        return points[use].load(), use, origin(points[use])
    except Exception as error:
        got = f"{type(error).__name__}: {error}"
        mend = f"Mend or uninstall {origin(points[use])}, or take `{instance}` out of the recipe."
        raise _Refused("broken", got, f"a plugin `{use}` that imports", mend) from error


def _file(path: Path, trusted: bool) -> ModuleType:
    if not trusted:
        mend = f"Read {path}; if you trust it, add --trust-files to the command."
        raise _Refused("untrusted-file", f"the local file {path}", "leave to run it", mend)
    if not path.is_file():
        raise _Refused("no-file", f"no file {path}", "a Python file", "Mend the path.")
    if path.suffix != ".py":
        raise _Refused("no-file", f"the file {path}", "a Python file", "Let its name end in `.py`.")
    try:
        return load_file(path)
    except Exception as error:
        got = f"{type(error).__name__}: {error}"
        raise _Refused("broken", got, f"{path} to import", "Mend the file.") from error


def _offered(manager, module, source) -> dict[str, type[Component]]:
    """What a module offers, once all its hooks are found good."""
    for function, value in vars(module).items():
        if function.startswith("lmmkit_") and inspect.isfunction(value) and not hasattr(value, "lmmkit_impl"):
            mend = "Put @hookimpl above it."
            raise _Refused("unmarked", f"function `{function}` of {source}", "a marked hook", mend)
    if not manager.is_registered(module):
        try:
            manager.register(module)
            manager.check_pending()
        except pluggy.PluginValidationError as error:
            raise _Refused("bad-hook", str(error), "only hooks lmmkit has", "Mend the plugin.") from error
    return dict(module.lmmkit_components()) if hasattr(module, "lmmkit_components") else {}


def _component(manager, module, name, source) -> type[Component]:
    offered = _offered(manager, module, source)
    if name not in offered:
        raise _Refused(
            "absent", f"component `{name}` of {source}", "one it offers", did_you_mean(name, offered)
        )
    cls = offered[name]
    if not (inspect.isclass(cls) and issubclass(cls, Component) and dataclasses.is_dataclass(cls)):
        want = "a frozen dataclass of a kind in lmmkit.ext"
        raise _Refused("kind", f"`{name}` of {source} is {cls!r}", want, "Mend the plugin.")
    if cls.api != API:
        raise _Refused("api", f"`{name}` of api {cls.api}", f"api {API}", "Take a matching release.")
    return cls


def settings(cls: type[Component]) -> Iterable[dataclasses.Field]:
    """The recipe keys of a component."""
    return [field for field in dataclasses.fields(cls) if field.name != "name"]
