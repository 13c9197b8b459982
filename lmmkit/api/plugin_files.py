"""Local plugin files: each is loaded once per process, as a module named after its content.

No other process can import such a name. So a component from a file is pickled as path, hash and class
name. A data worker loads the same file first, and raises if it was changed in the meantime.
"""

from __future__ import annotations

import hashlib
import importlib.util
import operator
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

from lmmkit.errors import UserError
from lmmkit.errors.plan import CHANGED_FILE

PREFIX = "lmmkit_file_"


def file_hash(path: Path) -> str:
    """Returns the first twelve hex digits of the sha256 of a file; empty if there is no file."""
    return hashlib.sha256(path.read_bytes()).hexdigest()[:12] if path.is_file() else ""


def load_file(path: Path) -> ModuleType:
    """Runs a file that the user trusts, once per process. Raises what the file raises."""
    name = PREFIX + file_hash(path)
    if name in sys.modules:
        return sys.modules[name]
    spec = importlib.util.spec_from_file_location(name, path.resolve())
    if spec is None or spec.loader is None:
        raise ImportError(f"{path} is not a Python file")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # before it runs: dataclasses look up their module
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise
    return module


def source_file(cls: type) -> tuple[str, str] | None:
    """Returns (path, hash) of the file that a class was loaded from; None if from an installed module."""
    if not cls.__module__.startswith(PREFIX):
        return None
    return str(sys.modules[cls.__module__].__file__), cls.__module__.removeprefix(PREFIX)


def empty_instance(path: str, hash_: str, qualname: str) -> Any:
    """Returns an object without state, of a class from a file. Raises `UserError` if the file has changed."""
    now = file_hash(Path(path))
    if now != hash_:
        raise UserError(CHANGED_FILE.at(path, got=f"hash {now}" if now else "no file", hash=hash_))
    cls = operator.attrgetter(qualname)(load_file(Path(path)))
    return object.__new__(cls)
