"""What a check looks at, and how checks run: one after the other, until one of them finds a problem."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import TypeVar

import numpy as np
import torch

from lmmkit.errors import Code, Problem, UserError
from lmmkit.plugin_calls.guard import place_of

S = TypeVar("S")
Check = Callable[[S], Iterable[Problem]]


def first_problems(checks: Sequence[Check[S]], subject: S) -> list[Problem]:
    """Returns the problems of the first check that finds any: later ones would report what follows from them."""
    for check in checks:
        try:
            found = list(check(subject))
        except UserError as error:
            found = list(error.problems)
        if found:
            return found
    return []


def problem(code: Code, name: str, method: str, owner: object, got: str, **fields: object) -> Problem:
    """Returns a problem of a method of a plugin, at its file and line."""
    return code.at(f"{name}.{method}, {place_of(owner, method)}", got=got, **fields)


@contextmanager
def global_seed(seed: int) -> Iterator[None]:
    """Sets the global generators of Python, numpy and torch: code that draws from them gives other results."""
    # torch's own functions for this take a millisecond: they care for devices too
    states = random.getstate(), np.random.get_state(), torch.default_generator.get_state()
    random.seed(seed)
    np.random.seed(seed)
    torch.default_generator.manual_seed(seed)
    try:
        yield
    finally:
        random.setstate(states[0])
        np.random.set_state(states[1])
        torch.default_generator.set_state(states[2])
