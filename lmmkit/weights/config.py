"""Reads a public `config.json` key by key. Unknown keys are ignored; invalid values are problems."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lmmkit.errors import UserError
from lmmkit.errors.weights import WEIGHTS_CONFIG
from lmmkit.runs.files import read_json

BLOCKS = 256  # LLaMA-405B has 126; the check builds each block on meta
_MISSING = object()


@dataclass(frozen=True)
class Config:
    """Holds a section or subsection of a model folder's config. `where`: the file and the section."""

    values: Mapping[str, Any]
    where: str

    @classmethod
    def of(cls, folder: Path) -> Config:
        """Reads the folder's `config.json`. Raises `UserError` if there is none."""
        path = folder / "config.json"
        return cls(read_json(path, hint="Name a folder with a model's config.json and weights."), str(path))

    def has(self, key: str) -> bool:
        """Returns whether the key exists and is not null."""
        return self.values.get(key) is not None

    def section(self, key: str) -> Config:
        """Returns a section below this one; an empty one if it does not exist."""
        value = self.values.get(key)
        if value is not None and not isinstance(value, Mapping):
            raise self.problem(key, value, "a section")
        return Config(value or {}, f"{self.where}: {key}")

    def count(self, key: str, default: Any = _MISSING, *, most: int = 2**24) -> int:
        """Returns an integer from 1 to `most`. Raises `UserError` for other values."""
        value = self._value(key, default)
        if type(value) is not int or not 1 <= value <= most:
            raise self.problem(key, value, f"a whole number from 1 to {most}")
        return value

    def integer(self, key: str, default: Any = _MISSING) -> int:
        """Returns an integer of any sign. Raises `UserError` for other values."""
        value = self._value(key, default)
        if isinstance(value, list):
            raise self.lacking(key, value, "one whole number")
        if type(value) is not int:
            raise self.problem(key, value, "one whole number")
        return value

    def number(self, key: str, default: Any = _MISSING) -> float:
        """Returns a finite number above 0. Raises `UserError` for other values."""
        value = self._value(key, default)
        if type(value) not in (int, float) or not 0 < value < float("inf"):
            raise self.problem(key, value, "a number above 0")
        return float(value)

    def flag(self, key: str, default: bool) -> bool:
        """Returns true or false. Raises `UserError` for other values."""
        value = self._value(key, default)
        if type(value) is not bool:
            raise self.problem(key, value, "true or false")
        return value

    def text(self, key: str, default: Any = _MISSING) -> str:
        """Returns a text. Raises `UserError` for other values."""
        value = self._value(key, default)
        if type(value) is not str:
            raise self.problem(key, value, "a text")
        return value

    def triple(self, key: str, default: Any) -> Any:
        """Returns three numbers, one per color. Raises `UserError` for other values."""
        value = self._value(key, default)
        if value is default:
            return default
        if not isinstance(value, list) or len(value) != 3 or not all(type(v) in (int, float) for v in value):
            raise self.problem(key, value, "three numbers")
        return tuple(map(float, value))

    def ids(self, key: str) -> tuple[int, ...]:
        """Returns token ids from a single id or a list. Raises `UserError` for other values."""
        value = self.values.get(key)
        listed = value if isinstance(value, list) else [value]
        found = tuple(v for v in listed if type(v) is int and v >= 0)
        if len(found) < len(listed):
            raise self.problem(key, value, "token ids")
        return found

    def one_of(self, key: str, known: Mapping[Any, str], default: Any) -> str:
        """Returns lmmkit's name, from `known`, for a value of a public config."""
        value = self._value(key, default)
        values = f"one of {', '.join(map(str, known))}"
        if isinstance(value, list | dict):
            raise self.problem(key, value, values)
        if value not in known:
            raise self.lacking(key, value, values)
        return known[value]

    def only(self, **supported: Any) -> None:
        """Raises `UserError` for other values of these keys, which would be ignored silently otherwise."""
        for key, value in supported.items():
            if self.has(key) and self.values[key] != value:
                raise self.lacking(key, self.values[key], "no value" if value is None else repr(value))

    def _value(self, key: str, default: Any) -> Any:
        value = self.values.get(key)
        if value is not None:
            return value
        if default is _MISSING:
            raise self.problem(key, None, "any, but the key is required")
        return default

    def problem(self, key: str, got: object, values: str) -> UserError:
        """Returns the error for one key; `values` describes the supported ones."""
        fix = "Correct the file, or download the folder again."
        return UserError(WEIGHTS_CONFIG.at(f"{self.where}: {key}", got=repr(got), values=values, fix=fix))

    def lacking(self, key: str, got: object, values: str) -> UserError:
        """Returns the error for a key that asks for something lmmkit cannot do; the file may be right."""
        fix = "lmmkit does not have this feature. The file may be right for its weights: use another model."
        return UserError(WEIGHTS_CONFIG.at(f"{self.where}: {key}", got=repr(got), values=values, fix=fix))
