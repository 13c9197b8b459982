"""Problems with the user's input: what is wrong, where, what was expected and how to fix it.

A reader of input collects `Problem`s and raises them together, so that a recipe with four mistakes is fixed
in one go. `commands/` prints them without a traceback and exits with
`exit_code`; any other exception is a bug of lmmkit and exits 1.

Every kind of problem is a `Code`, a constant in the file of this package that is named after its area.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterable
from dataclasses import KW_ONLY, dataclass
from importlib import import_module
from typing import Generic, TypeVar

_T = TypeVar("_T")

AREAS = (
    "ablation",
    "recipe",
    "plan",
    "dry_run",
    "data",
    "judge",
    "weights",
    "training",
    "answers",
    "report",
    "commands",
    "benchmarks",
)
"""The files of this package that contain codes."""
SHOWN = 8  # names in a hint


@dataclass(frozen=True)
class Problem:
    """Describes one thing that is wrong.

    `code` is stable and can be searched for ("recipe/unknown-key"). `where` names the file, line and key, or
    the file and record.
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
    """Describes one kind of problem: its code, and the texts that all problems of this kind share.

    `cause` is a sentence about when it is raised. `expected` and `hint` may contain fields, `{name}`, which
    `at` fills in.
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
    """Returns all codes by name, sorted."""
    modules = [import_module(f"{__name__}.{area}") for area in AREAS]
    codes = {v.code: v for module in modules for v in vars(module).values() if isinstance(v, Code)}
    return dict(sorted(codes.items()))


class LmmkitError(Exception):
    """Contains every problem that was found. It is printed without a traceback."""

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
    """Reports a problem of the machine: a missing package, no disk space, a data worker that ended."""

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
    """Returns "Did you mean `x`?" for the name in `known` that is close to `got`, else a list of names."""
    known = sorted({str(name) for name in known})
    if not known:
        return "There are no such names."
    if near := difflib.get_close_matches(str(got), known, n=1):
        return f"Did you mean `{near[0]}`?"
    shown = sorted(difflib.get_close_matches(str(got), known, n=SHOWN, cutoff=0.0))
    more = f" and {len(known) - len(shown)} more" if len(known) > len(shown) else ""
    return f"Known: {', '.join(shown)}{more}."
