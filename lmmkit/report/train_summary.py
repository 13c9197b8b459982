"""The last lines of a training: what was learned, next to its chance, and what it cost."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from lmmkit.progress import duration, plural
from lmmkit.runs.run_folder import RunFolder

PART = 20  # the figures are means over the last twentieth of the last stage
_Records = Sequence[Mapping[str, Any]]


def learned(run: RunFolder) -> str:
    """Returns the terms and metrics at the end of the last stage, each next to its chance level.

    A metric without a known chance level is left out. Without any figure it is the loss.
    """
    records = [record for record in run.read_metrics() if "loss" in record]
    if not records:
        return "no step was logged"
    stage = records[-1]["stage"]
    records = [record for record in records if record["stage"] == stage]
    last = records[-max(1, len(records) // PART) :]
    chances = {key: _mean(last, key) for key in last[-1] if key.startswith("chance/")}
    values = {key: _mean(last, key.replace("chance/", "terms/", 1)) for key in chances}
    shown = [
        f"{key.removeprefix('chance/')} {values[key]:.3g} (chance {chance:.3g})"
        for key, chance in chances.items()
        if chance is not None and values[key] is not None
    ]
    terms = [key for key in last[-1] if key.startswith("terms/") and key.count("/") == 1]
    for key in terms:
        if (value := _mean(last, key)) is not None and key.replace("terms/", "chance/", 1) not in chances:
            shown.append(f"{key.removeprefix('terms/')} {value:.3g}")
    loss = _mean(last, "loss")
    words = ", ".join(shown) or ("no loss" if loss is None else f"loss {loss:.3g}")
    of = "its last logged step" if len(last) == 1 else f"mean of its last {len(last)} logged steps"
    return f"{words}; stage {stage}, {of}"


def cost(run: RunFolder) -> str:
    """Returns steps, tokens and time of all logged steps."""
    records = [record for record in run.read_metrics() if "loss" in record]
    steps, seconds = (records[-1]["step"] if records else 0), sum(r["seconds"] for r in records)
    tokens = sum(record["tokens"] for record in records)
    every = "" if len(records) == steps else f" ({len(records):,} of them logged)"
    return f"{plural(steps, 'step')}{every}, {plural(tokens, 'token')}, {duration(seconds)} of training; {run.path}"


def _mean(records: _Records, key: str) -> float | None:
    """Returns the mean of a figure over the records that have it; None if none has."""
    values = [record[key] for record in records if record.get(key) is not None]
    return sum(values) / len(values) if values else None
