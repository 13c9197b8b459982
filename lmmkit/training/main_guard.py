"""Checks that a script can be imported again by data workers without starting a second training."""

from __future__ import annotations

import ast
import sys
import threading
from pathlib import Path

from lmmkit.errors import UserError
from lmmkit.errors.training import NO_MAIN_GUARD
from lmmkit.recipe import Recipe


def check_main_guard(recipe: Recipe) -> None:
    """Raises `UserError` if data workers would run the calling script from its start.

    A data worker imports the script that started the process. The statement of the script that runs now, in
    which the training was called, must therefore be inside `if __name__ == "__main__":`.
    """
    script = _script()
    if not recipe.speed.workers or script is None:
        return
    path, line = script
    try:
        statements = ast.parse(path.read_text(encoding="utf-8")).body
    except (OSError, ValueError, SyntaxError):  # no source, so nothing can be imported from it
        return
    running = next((each for each in statements if each.lineno <= line <= (each.end_lineno or line)), None)
    if running is not None and not _is_guarded(running):
        got = f"speed.workers: {recipe.speed.workers}, and a call outside of a `__main__` guard"
        raise UserError(NO_MAIN_GUARD.at(f"{path}:{line}", got=got))


def _script() -> tuple[Path, int] | None:
    """Returns the script that data workers import, and its line that runs now; None without such a script."""
    main = sys.modules["__main__"]
    path, spec = getattr(main, "__file__", None), getattr(main, "__spec__", None)
    if path is None or (spec is not None and spec.name.rpartition(".")[2] == "__main__"):
        return None  # an interactive session, or `python -m PACKAGE`, which workers do not import
    frame = sys._current_frames().get(threading.main_thread().ident or 0)
    while frame is not None and not (frame.f_globals is vars(main) and frame.f_code.co_name == "<module>"):
        frame = frame.f_back
    return None if frame is None else (Path(path), frame.f_lineno)


def _is_guarded(statement: ast.stmt) -> bool:
    """Returns whether a statement runs only if `__name__` has a certain value."""
    return isinstance(statement, ast.If) and any(
        isinstance(node, ast.Name) and node.id == "__name__" for node in ast.walk(statement.test)
    )
