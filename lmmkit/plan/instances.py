"""Builds the components from a recipe's plugin settings, and reports all their problems together."""

from __future__ import annotations

import inspect
import shlex
from collections.abc import Mapping
from dataclasses import MISSING, Field, dataclass
from types import UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from pydantic import ConfigDict, TypeAdapter, ValidationError, create_model
from torch import nn

from lmmkit import plugin_calls
from lmmkit.api.components import Component, ImageReducer, Reader, Term, TokenStrategy, TokenWeight
from lmmkit.api.model_info import Dims
from lmmkit.errors import Problem, did_you_mean, raise_all
from lmmkit.errors.plan import BAD_VALUE, MISSING_KEY, RESERVED_SETTING, SETTING_TYPE, UNKNOWN_KEY
from lmmkit.errors.recipe import NAME
from lmmkit.model.connectors.kinds import CONNECTORS
from lmmkit.plugin_calls.guard import calling, place_of
from lmmkit.recipe import Recipe, Weight, flow_text
from lmmkit.registry import Registry, open_registry, setting_fields

TORCH_NAMES = frozenset(dir(nn.ModuleDict()))  # the module of an instance has its name
COMPONENT_MODULE = Component.__module__  # its `name` is that of the instance
CORE_KEYS = ("use", "allow_unreachable")  # of every plugin section; the others are the plugin's


@dataclass(frozen=True)
class Instances:
    """Holds the plugin instances of a run, in recipe order, and the registry that loaded their classes."""

    registry: Registry
    components: Mapping[str, Component]
    unreachable: frozenset[str]  # instances that may read rows which cannot attend to an image

    @property
    def terms(self) -> dict[str, Term]:
        """Returns the components that are terms, in recipe order."""
        return {name: c for name, c in self.components.items() if isinstance(c, Term)}

    @property
    def readers(self) -> tuple[Reader, ...]:
        """Returns all components that read needs, in recipe order."""
        return tuple(c for c in self.components.values() if isinstance(c, Reader))

    @property
    def strategies(self) -> dict[str, TokenStrategy]:
        """Returns the token strategies, in recipe order."""
        return {name: c for name, c in self.components.items() if isinstance(c, TokenStrategy)}

    def origin(self, name: str) -> str:
        """Returns the distribution or file that an instance's class comes from."""
        return self.registry.components[name].origin


def weighers_of(instances: Instances, weight: Weight | None) -> tuple[TokenWeight, ...]:
    """Returns the plugins that weight the rows of the next-token loss, by its weight in a stage."""
    found = [instances.components[name] for name in (weight.by or () if weight is not None else ())]
    return tuple(component for component in found if isinstance(component, TokenWeight))


def reducer_of(recipe: Recipe, instances: Instances) -> ImageReducer | None:
    """Returns the plugin that `model.connector.reduce` names, if it is opened and a reducer."""
    connector = recipe.model.connector
    found = instances.components.get(connector.reduce) if connector and connector.reduce else None
    return found if isinstance(found, ImageReducer) else None


def without_patches(recipe: Recipe, instances: Instances, dims: Dims) -> str:
    """Returns the reducer, or the connector, that gives images rows without fixed patches; "" if neither does."""
    connector, found = recipe.model.connector, reducer_of(recipe, instances)
    if found is not None:
        return found.name if plugin_calls.patches(found, dims) is None else ""
    return connector.kind if connector and not CONNECTORS[connector.kind].fixed_patches else ""


def build_instances(recipe: Recipe, *, trust_files: bool = False) -> Instances:
    """Opens the registry for the recipe's instances and observers, and builds the instances.

    Raises:
        UserError: for unknown or broken plugins, and for settings that are unknown, missing or of a wrong
            type.
    """
    wanted = {name: str(raw.get("use", name)) for name, raw in recipe.plugins.items()}
    where = {name: recipe.where(f"plugins.{name}") for name in wanted}
    observers = {use: recipe.where(f"output.observers.{i}") for i, use in enumerate(recipe.output.observers)}
    registry = open_registry(
        wanted, where=where, trust_files=trust_files, base=recipe.path("."), observers=observers
    )
    problems: list[Problem] = []
    built = {}
    for name, raw in recipe.plugins.items():
        cls = registry.components[name].cls
        if name in TORCH_NAMES:
            got, expected = f"the instance name `{name}`", "a name that torch's modules do not use themselves"
            problems.append(NAME.at(recipe.where(f"plugins.{name}"), got=got, expected=expected))
            continue
        if unusable := class_problems(where[name], cls):
            problems += unusable
            continue
        settings = {key: value for key, value in raw.items() if key not in CORE_KEYS}
        try:
            built[name] = build_component(cls, name, settings)
        except ValidationError as error:
            # one problem per key: pydantic reports each member of a union separately
            kinds = {str(detail["loc"][0]): detail["type"] for detail in error.errors()}
            problems += [_problem(recipe, name, cls, key, kind) for key, kind in kinds.items()]
    raise_all(problems)
    unreachable = [name for name, raw in recipe.plugins.items() if raw.get("allow_unreachable", False)]
    return Instances(registry, built, frozenset(unreachable))


def class_problems(where: str, cls: type[Component]) -> list[Problem]:
    """Returns the problems of the settings that a component declares."""
    try:
        hints = _hints(cls)
    except Exception as error:  # evaluates the plugin's annotations
        got = f"annotations of `{cls.__name__}` that raise {type(error).__name__}: {error}"
        return [SETTING_TYPE.at(f"{where}, {place_of(cls)}", got=got)]
    problems = []
    if any(
        "name" in inspect.get_annotations(each) for each in cls.__mro__ if each.__module__ != COMPONENT_MODULE
    ):
        problems.append(RESERVED_SETTING.at(f"{where}, {place_of(cls)}", got="a setting `name`"))
    for setting in setting_fields(cls):
        if setting.name in CORE_KEYS:
            problems.append(
                RESERVED_SETTING.at(f"{where}, {place_of(cls)}", got=f"a setting `{setting.name}`")
            )
        elif not _plain(hints[setting.name]):
            got = f"`{setting.name}: {type_text(hints[setting.name])}`"
            problems.append(SETTING_TYPE.at(f"{where}, {place_of(cls)}", got=got))
    return problems


def _plain(hint: object) -> bool:
    """Returns whether a type can be written in a recipe, and is immutable."""
    origin, args = get_origin(hint), get_args(hint)
    if origin in (Union, UnionType, tuple):
        return all(arg is Ellipsis or _plain(arg) for arg in args)
    return origin is Literal or hint in (int, float, str, bool, type(None))


def build_component(cls: type[Component], name: str, settings: Mapping[str, object]) -> Component:
    """Returns a component with these settings. Types are strict. Raises pydantic's `ValidationError`."""
    annotated: dict[str, Any] = {
        f.name: (f.type if not isinstance(f.type, str) else _hints(cls)[f.name], default_of(f))
        for f in setting_fields(cls)
    }
    form = create_model(
        f"{cls.__name__}Settings", __config__=ConfigDict(extra="forbid", strict=True), **annotated
    )
    values = {key: _as_tuples(value) for key, value in settings.items()}
    checked = TypeAdapter(form).validate_python(values)
    with calling(name, "__post_init__", cls):
        return cls(name=name, **{f.name: getattr(checked, f.name) for f in setting_fields(cls)})


def _as_tuples(value: Any) -> Any:
    """Returns a value with its lists, and those within them, as tuples."""
    return tuple(map(_as_tuples, value)) if isinstance(value, list) else value


def _hints(cls: type) -> dict[str, object]:
    return get_type_hints(cls)


def default_of(f: Field) -> object:
    """Returns the default of a setting; `...` if it is required."""
    if f.default_factory is not MISSING:
        return f.default_factory()
    return ... if f.default is MISSING else f.default


def _problem(recipe: Recipe, name: str, cls: type[Component], key: str, kind: str) -> Problem:
    where = recipe.where(f"plugins.{name}.{key}")
    known = [field.name for field in setting_fields(cls)]
    use = recipe.plugins[name].get("use", name)
    explain = f"lmmkit plugins explain {use}"
    if use.partition(":")[0].endswith(".py"):
        root = "" if recipe.root == "." else f" --root {shlex.quote(recipe.root)}"
        explain += f"{root} --trust-files"
    if kind == "extra_forbidden":
        return UNKNOWN_KEY.at(where, got=f"`{key}`", name=name, nearest=did_you_mean(key, known))
    if kind == "missing":
        return MISSING_KEY.at(where, got=f"no `{key}`", name=name, explain=explain)
    got, type_ = f"`{flow_text(recipe.plugins[name][key])}`", type_text(_hints(cls)[key])
    return BAD_VALUE.at(where, got=got, type=type_, explain=explain)


def setting_types(cls: type[Component]) -> dict[str, str]:
    """Returns the type of each setting as text, by name."""
    hints = _hints(cls)
    return {field.name: type_text(hints[field.name]) for field in setting_fields(cls)}


def type_text(hint: Any) -> str:
    """Returns a type as text: "one of end, start", "int", "all or a list of int"."""
    origin = get_origin(hint)
    args = list(get_args(hint))
    if origin is Literal and len(args) > 1:
        return f"one of {', '.join(map(str, args))}"
    if origin is Literal:
        return str(args[0])
    if origin in (Union, UnionType):
        return " or ".join(dict.fromkeys(map(type_text, args)))
    if origin is tuple and args[-1] is not Ellipsis:
        return f"a list of {len(args)}: {', '.join(map(type_text, args))}"
    if origin in (tuple, list):
        return f"a list of {type_text(args[0])}"
    return "nothing" if hint is type(None) else getattr(hint, "__name__", str(hint))
