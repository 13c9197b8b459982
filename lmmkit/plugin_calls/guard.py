"""The guard around every call into a plugin: its exceptions and wrong results are `Problem`s.

An exception is the plugin's if it passed through the plugin's code, or if nothing of lmmkit was running
inside the call: a wrong signature, a method that is not implemented, a torch module called wrongly. Any other
exception is a bug of lmmkit and keeps its traceback.
"""

from __future__ import annotations

import errno
import inspect
import os
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from lmmkit.api.components import CHANGES, OLD_NAMES
from lmmkit.errors import LmmkitError, UserError
from lmmkit.errors.plan import RAISED, RETURNED
from lmmkit.memory_faults import is_out_of_memory

if TYPE_CHECKING:
    from types import FrameType

TRACEBACK = "LMMKIT_TRACEBACK"  # a variable; if it is set, the tracebacks of plugins are printed
FULL = (errno.EMFILE, errno.ENFILE, errno.ENOSPC, errno.ENOMEM)  # the machine's fault, not the plugin's
NOT_THEIRS = ("lmmkit", "torch", "numpy", "builtins", "abc", "typing")
LONGEST = 300  # characters of an exception's text


@contextmanager
def calling(name: str, method: str, owner: object) -> Iterator[None]:
    """Reports an exception of a plugin as `plugin/raised`. The block has nothing but the call.

    `name` is the instance; `owner` the object whose `method` is called: a component, an edit, a module.
    """
    try:
        yield
    except (Exception, SystemExit) as error:
        frames = list(traceback.walk_tb(error.__traceback__))[2:]  # without this one and the caller's
        if isinstance(error, LmmkitError) or of_the_machine(error) or not _is_theirs(error, owner, frames):
            raise
        if os.environ.get(TRACEBACK):
            traceback.print_exc()
        own = [(frame.f_code.co_filename, line) for frame, line in frames if _in(frame, packages(owner))]
        place = f"{Path(own[-1][0]).name}:{own[-1][1]}" if own else place_of(owner, method)
        text = next(iter(str(error).splitlines()), "")[:LONGEST]
        got = f"{type(error).__name__}: {text}" if text else type(error).__name__
        changes = CHANGES[OLD_NAMES[text]] if text in OLD_NAMES else ""
        changed = f"Since API {OLD_NAMES[text]}: {changes}. " if changes else ""
        where = f"{name}.{method}, {place}"
        raise UserError(RAISED.at(where, got=got, changed=changed, variable=TRACEBACK)) from error


def _is_theirs(error: BaseException, owner: object, frames: Sequence[tuple[FrameType, int]]) -> bool:
    """Returns whether an exception is a fault of the plugin that `owner` belongs to."""
    if not frames:  # raised by the call itself
        return isinstance(error, TypeError | AttributeError)
    if any(_in(frame, packages(owner)) for frame, _ in frames):
        return True
    return not any(_module(frame).startswith("lmmkit.") and not _inherited(frame) for frame, _ in frames)


def of_the_machine(error: BaseException) -> bool:
    """Returns whether an exception reports that the machine, or another rank, failed."""
    if is_out_of_memory(error):
        return True
    if isinstance(error, OSError) and error.errno in FULL:
        return True
    frames = [frame for frame, _ in traceback.walk_tb(error.__traceback__)]
    return bool(frames) and _module(frames[-1]).startswith("torch.distributed")


def _module(frame: FrameType) -> str:
    return str(frame.f_globals.get("__name__", ""))


def _inherited(frame: FrameType) -> bool:
    """Returns whether a frame is in code that components inherit or are handed."""
    return _module(frame).startswith("lmmkit.api.")


def _in(frame: FrameType, tops: set[str]) -> bool:
    return _module(frame).partition(".")[0] in tops


def packages(owner: object) -> set[str]:
    """Returns the packages that the code of an object comes from; a plugin file is a package of its own."""
    owner = owner.func if isinstance(owner, partial) else owner
    names = {cls.__module__ for cls in type(owner).__mro__} | {getattr(owner, "__module__", None) or ""}
    return {name.partition(".")[0] for name in names} - {*NOT_THEIRS, ""}


def place_of(owner: object, method: str = "") -> str:
    """Returns "file:line" of a method of an object or class, or of the class that should have it."""
    cls = owner if isinstance(owner, type) else type(owner)
    found = inspect.getattr_static(cls, method, None)
    found = found.fget if isinstance(found, property) else found
    for thing in (found, cls, owner):
        try:
            own: Any = inspect.unwrap(thing) if callable(thing) else thing
            file, line = inspect.getsourcefile(own), inspect.getsourcelines(own)[1]
        except (TypeError, OSError):
            continue
        if file and not _shared(file):
            return f"{Path(file).name}:{line}"
    return f"{cls.__module__}.{cls.__qualname__}"


def _shared(file: str) -> bool:
    """Returns whether a file is part of lmmkit or torch."""
    roots = (Path(__file__).parent.parent, Path(str(torch.__file__)).parent)
    return any(Path(file).is_relative_to(root) for root in roots)


def returned(name: str, method: str, owner: object, got: str, expected: str) -> UserError:
    """Returns the error for a method that gives something else than it must."""
    where = f"{name}.{method}, {place_of(owner, method)}"
    return UserError(RETURNED.at(where, got=got, expected=expected, method=method))


def shown(value: object) -> str:
    """Returns what a value is, in words."""
    if value is None:
        return "nothing (None)"
    if isinstance(value, Tensor):
        return f"a tensor {list(value.shape)} of {str(value.dtype).removeprefix('torch.')}"
    if isinstance(value, type):
        return f"the class {value.__name__}"
    if isinstance(value, bool | int | float | str):
        return f"{value!r:.60}"
    if isinstance(value, Sequence) and value:
        name = type(value[0]).__name__
        return f"a {type(value).__name__} with {'an' if name[0] in 'AEIOaeio' else 'a'} {name}"
    return f"a {type(value).__name__}"
