"""The names of a recipe that other keys may refer to."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from lmmkit.errors import Problem, did_you_mean
from lmmkit.errors.recipe import UNKNOWN_NAME


@dataclass(frozen=True)
class Names:
    """Holds the names that other keys may refer to."""

    plugins: tuple[str, ...] = ()
    data: tuple[str, ...] = ()
    tasks: tuple[str, ...] = ()

    @classmethod
    def of(cls, raw: Mapping[str, Any]) -> Names:
        """Returns the names from a mapping that may be invalid in all other respects."""

        def keys(*path: str) -> tuple[str, ...]:
            at: Any = raw
            for key in path:
                at = at.get(key) if isinstance(at, Mapping) else None
            return tuple(map(str, at)) if isinstance(at, Mapping) else ()

        return cls(plugins=keys("plugins"), data=keys("data"), tasks=keys("evaluate", "tasks"))


def check_known(key: str, name: str, known: tuple[str, ...], section: str) -> Iterator[Problem]:
    """Checks that `name` is one of the known names of a section."""
    if name not in known:
        expected, nearest = f"a name under {section}", did_you_mean(name, known)
        yield UNKNOWN_NAME.at(key, got=f"`{name}`", expected=expected, nearest=nearest)
