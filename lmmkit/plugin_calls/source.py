"""What the source of a plugin shows: methods that nothing calls, imports that it must not have, and its texts."""

from __future__ import annotations

import ast
import inspect
import re
import sys
from collections.abc import Iterator
from dataclasses import fields
from difflib import get_close_matches
from functools import cache
from pathlib import Path
from typing import NamedTuple

from lmmkit.api import components
from lmmkit.api.components import AuxTask, Component, RowLoss, StepTerm

ALIKE = 0.8  # how much two names must have in common, so that one is a slip of the other
OPEN = (
    "lmmkit",
    "lmmkit.api",
    "lmmkit.testing",
    "lmmkit.Recipe",
    "lmmkit.load",
    "lmmkit.read_recipe",
    "lmmkit.train",
)


class Found(NamedTuple):
    """Says what is wrong with a name of a plugin's source, where, and what belongs there."""

    name: str
    place: str
    got: str
    expected: str


def unused(component: Component) -> Iterator[Found]:
    """Yields the public methods and class attributes of a component that no code calls.

    They are those whose name is almost a method of its kind, a method of another kind, or a method that a setting
    of its class switches off. A name that the plugin's own code uses is never one of them.
    """
    cls = type(component)
    of_kind = {name for base in cls.__mro__ if _ours(base) for name in _public(base)}
    used = {field.name for field in fields(cls)}.union(*(_words(name).attributes for name in _modules(cls)))
    for base in (base for base in cls.__mro__ if not _ours(base) and base is not object):
        for name in (name for name in _public(base) if name not in used):
            if name in of_kind:
                wrong = _switched_off(component, name) if base is cls else None
            else:
                wrong = _no_method(cls, name, of_kind)
            if wrong:
                yield Found(name, _place(base, name), f"`{name}`, which nothing calls{wrong[0]}", wrong[1])


def _no_method(cls: type, name: str, of_kind: set[str]) -> tuple[str, str] | None:
    """Returns more about a name, and what belongs there, if it looks like a method of a component."""
    if near := get_close_matches(name, sorted(of_kind), 1, ALIKE):
        return "", f"`{near[0]}`"
    kind = next(base.__name__ for base in cls.__mro__ if _ours(base))
    return (f": it is no method of a `{kind}`", f"a method of `{kind}`") if name in _methods() else None


def _switched_off(component: Component, name: str) -> tuple[str, str] | None:
    """Returns when a method is not called, and what to do, if that is so for this component."""
    own = {field.name for field in fields(component)}
    if isinstance(component, AuxTask) and "text_loss" not in own:
        if component.text_loss and name == "value":
            return " with `text_loss`", "`value` or `text_loss`: the term is one of them"
        if not component.text_loss and name in ("score", "text_puzzle"):
            return " without `text_loss`", f"`text_loss = True`, or no `{name}`"
    if isinstance(component, RowLoss | StepTerm) and name == "value":
        kind = "RowLoss" if isinstance(component, RowLoss) else "StepTerm"
        instead = "`rows`" if kind == "RowLoss" else "`embed` and `step_value`"
        return f" in a `{kind}`", instead
    return None


def inner_imports(component: Component) -> Iterator[Found]:
    """Yields the imports of the inside of lmmkit in the file of a component; a file without a hook is no plugin's."""
    cls = type(component)
    if not any(hasattr(sys.modules[name], "lmmkit_components") for name in _modules(cls)):
        return
    for line, name in sorted(_words(cls.__module__).imports):
        if name.partition(".")[0] == "lmmkit" and name not in OPEN:
            got = f"`{name}`, which may change in any release"
            yield Found("import", f"{_file(cls)}:{line}", got, "nothing of lmmkit but `lmmkit.api`")


def may_read(component: Component, key: str) -> bool:
    """Returns whether a component may read this key of a record: it is a text of its source, or a setting."""
    settings = [getattr(component, field.name) for field in fields(component)]
    quoted = re.compile(f"[\"']{re.escape(key)}[\"']")
    return key in settings or any(quoted.search(_source(name)) for name in _modules(type(component)))


class _Words(NamedTuple):
    attributes: frozenset[str]  # names after a dot, and texts
    imports: frozenset[tuple[int, str]]  # line and name


def _modules(cls: type) -> list[str]:
    """Returns the names of the loaded modules of a class's package."""
    top = cls.__module__.partition(".")[0]
    return [name for name in list(sys.modules) if name == top or name.startswith(f"{top}.")]


@cache
def _source(module: str) -> str:
    """Returns the source of a loaded module; empty if there is none."""
    try:
        return inspect.getsource(sys.modules[module])
    except (OSError, TypeError):
        return ""


@cache
def _words(module: str) -> _Words:
    names, imports = set[str](), set[tuple[int, str]]()
    for node in ast.walk(ast.parse(_source(module))):
        match node:
            case ast.Attribute(attr=name) | ast.Constant(value=str(name)):
                names.add(name)
            case ast.Import(names=aliases):
                imports |= {(node.lineno, alias.name) for alias in aliases}
            case ast.ImportFrom(module=str(name), level=0, names=aliases):
                whole = [f"lmmkit.{alias.name}" for alias in aliases] if name == "lmmkit" else [name]
                imports |= {(node.lineno, each) for each in whole}
    return _Words(frozenset(names), frozenset(imports))


def _ours(base: type) -> bool:
    return base.__module__.startswith("lmmkit.api.")


def _public(base: type) -> list[str]:
    return [name for name in vars(base) if not name.startswith("_")]


@cache
def _methods() -> frozenset[str]:
    """Returns the names of the methods and class attributes of all kinds."""
    kinds = [
        each for each in vars(components).values() if isinstance(each, type) and issubclass(each, Component)
    ]
    return frozenset(name for kind in kinds for name in _public(kind))


def _file(cls: type) -> str:
    return Path(inspect.getsourcefile(cls) or cls.__module__).name


def _place(base: type, name: str) -> str:
    found = vars(base)[name]
    code = getattr(getattr(found, "fget", found), "__code__", None)
    return f"{_file(base)}:{code.co_firstlineno}" if code is not None else _file(base)
