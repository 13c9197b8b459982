"""The sessions of a run in `run.json`: which process trained it, on what, from when to when.

A run has one session, and one more for each resume. What a process cannot write because it is killed stays null.
"""

from __future__ import annotations

import os
import platform
import shlex
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from lmmkit import __version__
from lmmkit.errors import LmmkitError
from lmmkit.runs.files import finite, read_json, write_json_atomic
from lmmkit.runs.run_folder import RunFolder

SESSIONS = "sessions"


@contextmanager
def session(run: RunFolder, *, device: str, threads: int, processes: int) -> Iterator[Callable[..., None]]:
    """Adds a session to `run.json`, and completes it when the block ends, normally or by an error.

    Yields a function that writes further facts of the run, by name, some of them mappings that grow. Call it only
    while holding the run's lock.
    """
    facts = {
        "version": __version__, "command": command_line(), "machine": machine(), "device": device,
        "threads": threads, "processes": processes, "started": _now(), "ended": None, "cpu_seconds": None,
    }  # fmt: skip
    before = sessions_in(read_json(run.run_json))
    _write(run, {SESSIONS: [*before, facts]})
    try:
        yield lambda **facts: _write(run, facts)
    finally:
        facts |= {"ended": _now(), "cpu_seconds": round(sum(os.times()[:4]), 2)}
        try:
            _write(run, {SESSIONS: [*before, facts]})
        except LmmkitError as error:  # must not replace the error that ends the run
            print(f"note: {error}", file=sys.stderr)


def sessions_in(run_json: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Returns the sessions in the content of `run.json`; [] for a run of an earlier release."""
    found = run_json.get(SESSIONS)
    return [each for each in found if isinstance(each, dict)] if isinstance(found, list) else []


def cpu_seconds_in(run_json: Mapping[str, Any]) -> float | None:
    """Returns the CPU seconds of all sessions in the content of `run.json`; None if one of them is not known."""
    spent = [finite(each.get("cpu_seconds")) for each in sessions_in(run_json)]
    known = [x for x in spent if x is not None and x >= 0]
    return finite(sum(known)) if spent and len(known) == len(spent) else None


def command_line() -> str:
    """Returns the command that began this process, as a shell takes it."""
    first, *words = sys.argv or [""]
    name = Path(first).name
    return shlex.join(["lmmkit" if name == "__main__.py" else name, *words])


def machine() -> str:
    """Returns the operating system and the number of processors."""
    return f"{platform.system()} {platform.machine()}, {os.cpu_count()} processors"


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


def _write(run: RunFolder, facts: Mapping[str, Any]) -> None:
    """Writes facts into `run.json`; mappings are merged with those that are there."""
    before = read_json(run.run_json)
    merged = {
        key: {**before.get(key, {}), **value} if isinstance(value, dict) else value
        for key, value in facts.items()
    }
    write_json_atomic(run.run_json, {**before, **merged})
