"""Problems: what is wrong with what the user gave us, where, and how to mend it.

Bad input is never one exception at a time. A reader collects `Problem`s and raises them
together, so that a recipe with four mistakes is mended once. `commands/` prints them without a
traceback and exits with `exit_code`; a plain exception is a bug of ours and exits 1.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from dataclasses import dataclass


@dataclass(frozen=True)
class Problem:
    """One thing that is wrong: its place, what stood there, what would do, how to mend it.

    `code` is stable and greppable ("recipe/unknown-key"); `where` names file:line and key, or
    file and row.
    """

    code: str
    where: str
    got: str
    want: str
    mend: str

    def __str__(self) -> str:
        return f"{self.where}: got {self.got}; want {self.want}. {self.mend} [{self.code}]"


class LmmkitError(Exception):
    """Carries every problem found; never shown as a traceback."""

    exit_code = 1

    def __init__(self, problems: Problem | Iterable[Problem]):
        self.problems = (problems,) if isinstance(problems, Problem) else tuple(problems)
        super().__init__("\n".join(map(str, self.problems)))

    def __reduce__(self):
        return type(self), (self.problems,)


class UserError(LmmkitError):
    """The input is wrong: recipe, data, options, files."""

    exit_code = 2


class MachineError(LmmkitError):
    """The machine is wrong: a missing package, no space, a dead data worker."""

    exit_code = 3


def raise_all(problems: Iterable[Problem]) -> None:
    """Raises `UserError` with all `problems`, if there are any."""
    problems = tuple(problems)
    if problems:
        raise UserError(problems)


def did_you_mean(got: str, known: Iterable[str]) -> str:
    """'Did you mean `x`?' for the nearest of `known`, else the list of them."""
    known = sorted(map(str, known))
    near = difflib.get_close_matches(str(got), known, n=1)
    if near:
        return f"Did you mean `{near[0]}`?"
    return f"Known: {', '.join(known)}." if known else "None are known here."
