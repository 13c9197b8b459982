"""Writes the runs of a grid for the HPARAMS tab of TensorBoard: what an arm changes, its seed, its figures."""

from __future__ import annotations

import math
import os
import shutil
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from lmmkit.recipe import flow_text
from lmmkit.runs.run_folder import RunFolder

LONGEST = 240  # bytes of a name, beside those of a temporary one
_Entry = Mapping[str, Any]


def write_hparams(grid: str, entries: Sequence[_Entry]) -> None:
    """Writes for each run of the arms of a summary its folder tb/hparams-GRID, instead of an earlier one. A run that
    belongs to two comparisons, such as of equal steps and of equal time, is one session of both."""
    sessions: dict[str, tuple[dict[str, Any], dict[str, float]]] = {}
    for entry in entries:
        for run in entry["runs"]:
            hparams, figures = sessions.setdefault(run["folder"], (_hparams(grid, entries, entry, run), {}))
            if entry["equal"] not in hparams["equal"].split(", "):
                hparams["equal"] += f", {entry['equal']}"
            figures.update(_figures(entry, run))
    for folder, (hparams, figures) in sessions.items():
        name = f"{grid} {Path(folder).name}"
        _write(RunFolder(Path(folder)).tb / _folder_name(grid), name, hparams, figures)


def _folder_name(grid: str) -> str:
    """Returns the name of a grid's folder; of a long name the beginning, as a name may have 255 bytes."""
    return f"hparams-{grid}".encode()[:LONGEST].decode(errors="ignore")


def _hparams(grid: str, entries: Sequence[_Entry], entry: _Entry, run: _Entry) -> dict[str, Any]:
    """Returns what names a run, and for each key that some arm changes the value that this one has."""
    named = {
        "grid": grid, "variant": entry["variant"], "equal": entry["equal"], "seed": run["seed"],
        "root": run["root"], "branch": run["branch"],
    }  # fmt: skip
    of_base = {change["key"]: change["base"] for each in entries for change in each["changes"]}
    own = of_base | {change["key"]: change["here"] for change in entry["changes"]}
    return named | {key: _plain(value) for key, value in own.items() if key not in named}


def _plain(value: Any) -> bool | int | float | str:
    return value if isinstance(value, bool | int | float | str) else flow_text(value)


def _figures(entry: _Entry, run: _Entry) -> Iterator[tuple[str, float]]:
    for name, measured in entry["measures"].items():
        for each in measured["values"]:
            if all(each[key] == run[key] for key in ("seed", "root", "branch")):
                yield f"measures/{name}", each["value"]
    for name, value in run["cost"].items():
        if value is not None:
            yield f"cost/{name}", value


def _write(to: Path, name: str, hparams: Mapping[str, Any], figures: Mapping[str, float]) -> None:
    """Writes one session. torch's writer would need the memory of torch."""
    from tensorboard.compat.proto.event_pb2 import Event  # pyright: ignore[reportAttributeAccessIssue]
    from tensorboard.compat.proto.summary_pb2 import Summary  # pyright: ignore[reportAttributeAccessIssue]
    from tensorboard.plugins.hparams import metadata
    from tensorboard.plugins.hparams.api_pb2 import STATUS_SUCCESS  # pyright: ignore[reportAttributeAccessIssue]
    from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData, SessionEndInfo  # pyright: ignore[reportAttributeAccessIssue]
    from tensorboard.plugins.hparams.summary_v2 import hparams_pb
    from tensorboard.summary.writer.record_writer import RecordWriter

    known = {
        key: value for key, value in hparams.items() if not isinstance(value, float) or math.isfinite(value)
    }
    end = HParamsPluginData(session_end_info=SessionEndInfo(status=STATUS_SUCCESS))
    values = [
        *hparams_pb(known, trial_id=name).value,
        *(Summary.Value(tag=tag, simple_value=value) for tag, value in figures.items()),
        Summary.Value(
            tag=metadata.SESSION_END_INFO_TAG, metadata=metadata.create_summary_metadata(end),
            tensor=metadata.NULL_TENSOR,
        ),
    ]  # fmt: skip
    now = time.time()
    aside = to.with_name(f".{to.name}.tmp")
    shutil.rmtree(aside, ignore_errors=True)
    aside.mkdir(parents=True)
    with (aside / f"events.out.tfevents.{int(now)}.{os.getpid()}").open("wb") as file:
        writer = RecordWriter(file)
        writer.write(Event(wall_time=now, file_version="brain.Event:2").SerializeToString())
        writer.write(Event(wall_time=now, summary=Summary(value=values)).SerializeToString())
    shutil.rmtree(to, ignore_errors=True)
    aside.rename(to)
