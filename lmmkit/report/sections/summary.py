"""The head of a report: a verdict that the interval carries, what was gained, and what it cost."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from lmmkit.evaluate.answers.schema import OWN
from lmmkit.evaluate.task import Figure
from lmmkit.progress import plural
from lmmkit.report.asked import AskedRuns
from lmmkit.report.loaded_run import LoadedRun
from lmmkit.report.sections.caveats import cautions, distrust, uneven_speed
from lmmkit.report.sections.costs import CostLine, cost_words, costs_of
from lmmkit.report.sections.measures import (
    Measure,
    accuracies,
    attention_measures,
    half_width,
    leaves_out_zero,
    puzzle_measures,
)
from lmmkit.report.sections.puzzles import PuzzleResult
from lmmkit.report.wording import in_percent, in_words


@dataclass(frozen=True, kw_only=True)
class Summary:
    """Holds what the head of the page shows. `difference`: in accuracy, with two runs; it follows `lead`, and `more`
    follows it. `warnings`: what keeps the figures from being trusted."""

    kicker: str
    head: str
    lead: str = ""
    more: str = ""
    notes: Sequence[str] = ()
    warnings: Sequence[str] = ()
    difference: Figure | None = None
    measures: Sequence[Measure] = ()
    costs: Sequence[CostLine] = ()
    reach: float = 0.05


def summarise_runs(asked: AskedRuns, puzzles: Sequence[PuzzleResult]) -> Summary:
    """Returns the summary of runs."""
    runs = asked.runs
    measures = [*accuracies(asked), *attention_measures(asked), *puzzle_measures(runs, puzzles)]
    costs = costs_of(runs)
    own = measures[0] if asked.in_shares and any(asked.headline(run) for run in runs) else None
    difference = own.differences[0] if own and len(runs) == 2 and own.differences else None
    more = [_below_chance(runs, own), cost_words(runs, costs)]
    if len(runs) == 2:
        more.append(_also(runs, measures[1:] if own else measures))
    return Summary(
        kicker=_kicker(asked), head=_head(asked, own, difference), lead=_lead(runs, own, difference),
        more=" ".join(filter(None, more)),
        notes=[note for note in (*cautions(asked, own), uneven_speed(runs)) if note], warnings=list(distrust(asked)),
        difference=difference, measures=measures, costs=costs, reach=half_width([difference]),
    )  # fmt: skip


def _kicker(asked: AskedRuns) -> str:
    runs, parts = asked.runs, [plural(len(asked.runs), "run")]
    answered = next((run for run in asked.of if run.whole), None)
    if headline := next((f for run in runs if (f := asked.headline(run))), None):
        parts.append(f"task {asked.task}: {plural(headline.n, 'question')}")
        if answered:
            clusters = {answers[OWN].cluster or id for id, answers in answered.answers.items()}
            parts[-1] += f" on {plural(len(clusters), 'image or scene', 'images or scenes')}"
    ends = [str(s["ended"])[:10] for run in runs for s in run.sessions if s.get("ended")]
    return " · ".join([*parts, *([f"trained until {max(ends)}"] if ends else [])])


def _head(asked: AskedRuns, own: Measure | None, difference: Figure | None) -> str:
    runs, names = asked.runs, [run.name for run in asked.runs]
    if own is None:
        return f"{in_words(names) if len(names) < 5 else plural(len(names), 'run')}: no accuracy to show"
    if len(runs) == 1:
        figure = own.figures[0]
        assert figure is not None, "there is a headline"
        if not asked.is_mean:
            return f"{asked.figure} of {names[0]}: {in_percent(figure.value)} % in task {asked.task}"
        return f"{names[0]} answers {in_percent(figure.value)} % of {plural(figure.n, 'question')} right"
    if len(runs) == 2:
        if difference is None:
            return f"{names[0]} and {names[1]}, not compared"
        if not leaves_out_zero(difference):
            return f"No difference in accuracy shown between {names[0]} and {names[1]}"
        better, other = names[::-1] if difference.value > 0 else names
        return f"{better} answers more questions right than {other}"
    compared = list(zip(names[1:], own.differences, strict=True))
    if not any(d for _, d in compared):
        return f"{plural(len(runs), 'run')}, not compared"
    apart = [name for name, d in compared if leaves_out_zero(d)]
    if not apart:
        return f"No difference in accuracy shown between {names[0]} and {plural(len(compared), 'other run')}"
    which = in_words(apart) if len(apart) < 4 else f"{len(apart)} of {len(compared)} runs"
    return f"{which} {'differs' if len(apart) == 1 else 'differ'} in accuracy from {names[0]}"


def _lead(runs: Sequence[LoadedRun], own: Measure | None, difference: Figure | None) -> str:
    if own is None or len(runs) == 1:
        figure = own.figures[0] if own else None
        if figure is None or figure.low is None:
            return ""
        chance = ""
        if figure.chance is not None:
            chance = f"; the commonest answers alone would get {in_percent(figure.chance)} %"
        return f"The 95 % interval is {in_percent(figure.low)} to {in_percent(figure.high)} %{chance}."
    if len(runs) > 2 or difference is None:
        return ""
    a, b = own.figures
    if a is None or b is None:
        return f"On common questions {runs[1].name} and {runs[0].name} have"
    return f"{runs[1].name} answers {in_percent(b.value)} % right and {runs[0].name} {in_percent(a.value)} %"


def _below_chance(runs: Sequence[LoadedRun], own: Measure | None) -> str:
    """Returns which runs answer worse than a model that reads no image, as far as their intervals show it."""
    figures = own.figures if own else ()
    low = [
        run.name for run, f in zip(runs, figures, strict=False)
        if f and f.chance is not None and f.high is not None and f.high < f.chance
    ]  # fmt: skip
    if not low:
        return ""
    return f"{in_words(low)} {'is' if len(low) == 1 else 'are'} below the commonest answers, which need no image."


def _also(runs: Sequence[LoadedRun], measures: Sequence[Measure]) -> str:
    found = []
    for m in measures:
        if m.differences and leaves_out_zero(m.differences[0]):
            a, b = (in_percent(f.value) if f else "" for f in m.figures)
            found.append(f"{m.label}, {a} % in {runs[0].name} and {b} % in {runs[1].name}")
    return f"Beside accuracy these differ: {'; '.join(found)}." if found else ""
