"""Rules of the section `plugins`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from lmmkit.errors import Problem
from lmmkit.errors.recipe import NAME, WRONG_TYPE
from lmmkit.recipe.rules.names import Names

RESERVED_NAMES = ("next_token", "main")  # the term and the view of the core


def check_plugins(plugins: Mapping[str, Mapping[str, Any]], key: str, names: Names) -> Iterator[Problem]:
    """Checks that instance names are not reserved, and the keys that every plugin has."""
    for name, settings in plugins.items():
        if name in RESERVED_NAMES:
            got, expected = f"the instance name `{name}`", "a name that lmmkit does not use itself"
            yield NAME.at(f"{key}.{name}", got=got, expected=expected)
        use = settings.get("use", name)
        if not isinstance(use, str) or not use:
            expected, fix = "the name of a component", "Change the value."
            yield WRONG_TYPE.at(f"{key}.{name}.use", got=str(use), expected=expected, fix=fix)
        allowed = settings.get("allow_unreachable", False)
        if not isinstance(allowed, bool):
            fix = "Write true or false."
            yield WRONG_TYPE.at(
                f"{key}.{name}.allow_unreachable", got=str(allowed), expected="true or false", fix=fix
            )
