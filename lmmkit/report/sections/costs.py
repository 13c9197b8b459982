"""What runs cost: steps, tokens, time and parameters, as lines of a table and as a sentence."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from lmmkit.progress import duration
from lmmkit.report.loaded_run import LoadedRun
from lmmkit.report.wording import DASH, TIMES, as_ratio, in_words_of_size
from lmmkit.runs.files import finite


@dataclass(frozen=True, kw_only=True)
class CostLine:
    """Holds a line of costs as text. `ratio`: of the second run to the first."""

    label: str
    cells: Sequence[str]
    ratio: str = ""


def costs_of(runs: Sequence[LoadedRun]) -> list[CostLine]:
    """Returns steps, tokens, times and parameters of the runs."""

    def line(label: str, values: Sequence[float | None], show: Callable[[float], str]) -> CostLine | None:
        if not any(values):
            return None
        ratio, (base, *others) = "", values
        if len(values) == 2 and base and others[0]:
            ratio = "same" if base == others[0] else as_ratio(others[0] / base)
        return CostLine(label=label, cells=[DASH if not v else show(v) for v in values], ratio=ratio)

    lines = [
        line(
            "optimizer steps",
            [len(run.steps) and run.steps[-1]["step"] for run in runs],
            lambda v: f"{v:,.0f}",
        ),
        line("tokens read in training", [run.total("tokens") for run in runs], in_words_of_size),
        line("training time", [run.total("seconds") for run in runs], duration),
        line("CPU time, with start and saves", [run.cpu_seconds for run in runs], duration),
        line("parameters", [finite(run.facts.get("parameters")) for run in runs], in_words_of_size),
    ]
    return [each for each in lines if each is not None]


def cost_words(runs: Sequence[LoadedRun], costs: Sequence[CostLine]) -> str:
    """Returns what the second run cost beside the first, as a sentence."""
    by_label: dict[str, Any] = {cost.label: cost.ratio for cost in costs}
    steps, tokens, time = (
        by_label.get(k) for k in ("optimizer steps", "tokens read in training", "training time")
    )
    if len(runs) != 2 or not (steps and tokens and time):
        return ""

    def times(ratio: str, what: str) -> str:
        if ratio.startswith(TIMES):
            return f"{ratio[2:]} times {what}"
        return what if ratio == "same" else f"about {what}"

    first = "the same number of steps" if steps == "same" else times(steps, "the steps")
    return (
        f"For {first} {runs[1].name} read {times(tokens, 'the tokens')} and took {times(time, 'the time')}."
    )
