"""Problems with the user's input: what is wrong, where, what was expected and how to fix it.

Bad input is never one exception at a time. A reader collects `Problem`s and raises them together, so that a
recipe with four mistakes is fixed in one go. `commands/` prints them without a traceback and exits with
`exit_code`; any other exception is a bug of lmmkit and exits 1.

Every kind of problem is a `Code`, a constant in the file of this package that is named after its area.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterable
from dataclasses import KW_ONLY, dataclass
from importlib import import_module
from typing import Generic, TypeVar

_T = TypeVar("T")

AREAS = ("recipe", "plan", "data", "weights", "training", "commands")
"""The files of this package that hold codes."""


@dataclass(frozen=True)
class Problem:
    """One thing that is wrong.

    `code` is stable and can be searched for ("recipe/unknown-key"); `where` names file:line and key, or file
    and record.
    """

    code: str
    where: str
    got: str
    expected: str
    hint: str

    def __str__(self) -> str:
        return f"{self.where}: got {self.got}; expected {self.expected}. {self.hint} [{self.code}]"


@dataclass(frozen=True)
class Code:
    """One kind of problem: its code and the words that all its reports share.

    `cause` says in a sentence when it is raised. `expected` and `hint` may hold fields, `{name}`, which `at`
    fills in.
    """

    code: str
    _: KW_ONLY
    cause: str
    expected: str
    hint: str

    def at(self, where: str, *, got: str, **fields: object) -> Problem:
        """Returns the problem of this kind at `where`. Raises `KeyError` for a field that is not given."""
        return Problem(self.code, where, got, self.expected.format(**fields), self.hint.format(**fields))


def all_codes() -> dict[str, Code]:
    """Returns every code by its text, sorted."""
    modules = [import_module(f"{__name__}.{area}") for area in AREAS]
    codes = {v.code: v for module in modules for v in vars(module).values() if isinstance(v, Code)}
    return dict(sorted(codes.items()))


class LmmkitError(Exception):
    """Carries every problem found. It is printed without a traceback."""

    exit_code = 1

    def __init__(self, problems: Problem | Iterable[Problem]):
        self.problems = (problems,) if isinstance(problems, Problem) else tuple(problems)
        super().__init__("\n".join(map(str, self.problems)))

    def __reduce__(self):
        return type(self), (self.problems,)


class UserError(LmmkitError):
    """Reports wrong input: recipe, data, options, files."""

    exit_code = 2


class MachineError(LmmkitError):
    """Reports a fault of the machine: a missing package, no disk space, a dead data worker."""

    exit_code = 3


def raise_all(problems: Iterable[Problem]) -> None:
    """Raises `UserError` with all `problems`, if there are any."""
    problems = tuple(problems)
    if problems:
        raise UserError(problems)


class Tried(Generic[_T]):
    """Holds the result of `make`: a value or an error. Has neither if one of `needs` has no value."""

    value: _T
    error: UserError | MachineError | None = None

    def __init__(self, make: Callable[[], _T], *needs: Tried):
        if all(hasattr(each, "value") for each in needs):
            try:
                self.value = make()
            except (UserError, MachineError) as error:
                self.error = error


def raise_together(tried: Iterable[Tried]) -> None:
    """Raises the problems of all errors, if there are any: a `MachineError` if all are from the machine."""
    errors = [each.error for each in tried if each.error is not None]
    if errors:
        kind = MachineError if all(isinstance(error, MachineError) for error in errors) else UserError
        raise kind(dict.fromkeys(problem for error in errors for problem in error.problems))


def did_you_mean(got: str, known: Iterable[str]) -> str:
    """Returns "Did you mean `x`?" for the nearest of `known`, else the list of them."""
    known = sorted(map(str, known))
    near = difflib.get_close_matches(str(got), known, n=1)
    if near:
        return f"Did you mean `{near[0]}`?"
    return f"Known: {', '.join(known)}." if known else "None are known here."
