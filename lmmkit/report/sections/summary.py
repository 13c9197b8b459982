"""The head of a report: a verdict that the interval carries, what was gained, and what it cost."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from lmmkit.evaluate.answers.schema import OWN
from lmmkit.evaluate.task import Figure
from lmmkit.progress import duration
from lmmkit.report.asked import AskedRuns, RunAnswers, not_adding_up, score_of
from lmmkit.report.loaded_run import DRAWN, LoadedRun
from lmmkit.report.sections.puzzles import PuzzleResult
from lmmkit.report.wording import (
    DASH,
    TIMES,
    as_ratio,
    finite,
    in_percent,
    in_words,
    in_words_of_size,
    plain_number,
    plural,
)

Value = Callable[[RunAnswers, str], float | None]
IMAGES = {
    OWN: "with its own image", "swapped": "with another question's image", "blank": "with a blank image",
    "black": "with a black image", "none": "without an image", "empty": "with an empty image",
}  # fmt: skip
LOOKS = {
    "image_attention": ("attention of its answers on the image", "mass"),
    "deciding_attention": ("attention of the row that decides on the answer", "deciding_mass"),
    "object_attention": ("that row's attention on the object asked for", "object"),
}
"""The figures of attention in results.json: what they are, and the field of a line of attention.jsonl."""
GAINS = {"visual_gain_swapped": "swapped", "visual_gain": "blank"}
VARIED = 2.0  # how far apart the 5th and 95th percentile of a speed make times no clean measure


@dataclass(frozen=True, kw_only=True)
class Measure:
    """Holds a line of the table: a figure of each run, and of each further run minus the first."""

    label: str
    note: str = ""
    figures: Sequence[Figure | None]
    differences: Sequence[Figure | None] = ()
    absent: str = ""


@dataclass(frozen=True, kw_only=True)
class CostLine:
    """Holds a line of costs as text. `ratio`: of the second run to the first."""

    label: str
    cells: Sequence[str]
    ratio: str = ""


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
    reach: float = field(default=0.05)


def summarise_runs(asked: AskedRuns, puzzles: Sequence[PuzzleResult]) -> Summary:
    """Returns the summary of runs."""
    runs = asked.runs
    measures = [*_accuracies(asked), *_looks(asked), *_puzzles(runs, puzzles)]
    costs = _costs(runs)
    own = measures[0] if asked.in_shares and any(asked.headline(run) for run in runs) else None
    difference = own.differences[0] if own and len(runs) == 2 and own.differences else None
    more = [_below_chance(runs, own), _cost_words(runs, costs)]
    if len(runs) == 2:
        more.append(_also(runs, measures[1:] if own else measures))
    return Summary(
        kicker=_kicker(asked), head=_head(runs, asked, own, difference), lead=_lead(runs, own, difference),
        more=" ".join(filter(None, more)),
        notes=[note for note in (*_caution(runs, own), _busy(runs)) if note], warnings=list(_warnings(asked, own)),
        difference=difference, measures=measures, costs=costs, reach=half_width([difference]),
    )  # fmt: skip


def half_width(differences: Sequence[Figure | None]) -> float:
    """Returns half the width of an axis of differences: a multiple of 5 points that holds all intervals."""
    ends = [abs(end) for d in differences if d for end in (d.value, d.low, d.high) if end is not None]
    return max(0.05, math.ceil(max(ends, default=0.0) * 20 - 1e-9) / 20)


def leaves_out_zero(difference: Figure | None) -> bool:
    """Returns whether an interval has 0 outside."""
    if difference is None or difference.low is None or difference.high is None:
        return False
    return difference.low > 0 or difference.high < 0


def _kicker(asked: AskedRuns) -> str:
    runs, parts = asked.runs, [plural(len(asked.runs), "run")]
    answered = next((run for run in asked.of if run.whole), None)
    if headline := next((f for run in runs if (f := asked.headline(run))), None):
        parts.append(f"task {asked.task}: {plural(headline.n, 'question')}")
        if answered:
            clusters = {answers[OWN].cluster for answers in answered.answers.values()}
            parts[-1] += f" on {plural(len(clusters), 'image or scene', 'images or scenes')}"
    ends = [str(s["ended"])[:10] for run in runs for s in run.sessions if s.get("ended")]
    return " · ".join([*parts, *([f"trained until {max(ends)}"] if ends else [])])


def _head(runs: Sequence[LoadedRun], asked: AskedRuns, own: Measure | None, difference: Figure | None) -> str:
    names = [run.name for run in runs]
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


def _caution(runs: Sequence[LoadedRun], own: Measure | None):
    if own is None:
        return
    if len(runs) == 1:
        yield (
            "One seed. The interval is about the questions that were asked: another seed may give another figure."
        )
        return
    yield (
        "One seed a run. The intervals are about which questions were asked, not about which seed was drawn: another "
        "seed may move a figure by more than these differences."
    )
    if len(runs) > 2:
        yield (
            f"Each run is compared with {runs[0].name}, the first: {plural(len(runs) - 1, 'interval')} of 95 % each, "
            "so one in twenty leaves out 0 by chance alone."
        )
    if len(runs) > DRAWN:
        yield f"Tables have all runs; the first {DRAWN} are drawn by type, as curves and among the samples."


def _busy(runs: Sequence[LoadedRun]) -> str:
    found = []
    for run in runs[:DRAWN]:
        speeds = [s for step in run.steps if (s := finite(step.get("tokens_per_second")))]
        if len(speeds) >= 20:
            low, high = np.percentile(speeds, [5, 95])
            if high > VARIED * low:
                found.append(f"{run.name} {low:,.0f} to {high:,.0f}")
    if not found:
        return ""
    return (
        f"The speed varied within a run (tokens a second, 5th to 95th percentile: {'; '.join(found)}). Where the "
        "machine was shared, times are no clean measure."
    )


def _warnings(asked: AskedRuns, own: Measure | None):
    runs = asked.runs
    for run in runs:
        if run.unfinished:
            yield f"{run.name} {run.unfinished}. Its figures are not final."
    for run in runs:
        if run.missing:
            yield f"{run.name} has {in_words(list(run.missing))}."
    if asked.task is None:
        yield "No run has results of questions, so there is no accuracy: `lmmkit eval RUN` writes them."
    without = [run.name for run, answers in zip(runs, asked.of, strict=False) if not answers.whole]
    if asked.task and without:
        yield (
            f"No answers of task {asked.task} in {in_words(without)}: no paired comparison and no samples there. That "
            "two intervals overlap shows nothing about a difference. `lmmkit eval RUN` writes the answers."
        )
    if asked.task and not asked.is_mean:
        values = [f"{run.name} {plain_number(f.value)}" for run in runs if (f := asked.headline(run))]
        yield (
            f"The headline of task {asked.task} is {asked.figure}, no mean of scores, so the runs are not compared by "
            f"question here: {in_words(values)}. `lmmkit answers compare` compares the scores."
        )
    yield from _other_questions(asked)
    yield from _other_data(runs)
    if found := not_adding_up(asked):
        more = f" and {len(found) - 6} more" if len(found) > 6 else ""
        yield (
            f"Answers do not add up to results.json: {'; '.join(found[:6])}{more}. The figures are those of "
            "results.json; do not trust the differences."
        )


def _other_questions(asked: AskedRuns):
    """Yields a sentence for each run whose questions, or whose right answers, are not those of the first."""
    with_answers = [i for i, run in enumerate(asked.of) if run.whole]
    for i in with_answers[1:]:
        first = with_answers[0]
        name, other = asked.runs[i].name, asked.runs[first].name
        n, (a, b) = (
            sum(1 for _ in asked.common(first, i)),
            (len(asked.of[first].answers), len(asked.of[i].answers)),
        )
        hashes = {asked.of[k].header.get("data_sha256") for k in (first, i)}
        if n < max(a, b):
            yield (
                f"{name} answered another set of questions than {other}: {n:,} of {b:,} and {a:,} are the same. "
                "Differences are of these; the other figures are each run's own."
            )
        elif len(hashes) > 1:
            yield (
                f"{name} answered another version of the questions than {other}: the prompts are the same, but not all "
                "right answers, types or scenes."
            )


def _other_data(runs: Sequence[LoadedRun]):
    """Yields a sentence for each run that was trained on another version of a source of the first."""
    first = runs[0].facts.get("data")
    for run in runs[1:]:
        data = run.facts.get("data")
        if not isinstance(first, dict) or not isinstance(data, dict):
            continue
        changed = [name for name in first if name in data and first[name] != data[name]]
        other = sorted(set(first) ^ set(data))
        if changed:
            yield f"{run.name} was trained on another version of {in_words(changed)} than {runs[0].name}."
        if other:
            yield f"{run.name} and {runs[0].name} were trained on other sources: {in_words(other)} in one of them."


def _accuracies(asked: AskedRuns) -> list[Measure]:
    """Returns the headline under each condition; [] for one that is no share, which the page names instead."""
    runs = asked.runs
    if not asked.in_shares:
        return []
    what = "right" if asked.is_mean else asked.figure
    found = [
        Measure(
            label=f"{what}, {IMAGES[condition]}", figures=[asked.headline(run, condition) for run in runs],
            differences=_differences(asked, score_of(condition), most=None if condition == OWN else 2),
        )
        for condition in asked.conditions
    ]  # fmt: skip
    for name, condition in GAINS.items():
        figures = [run.figure(asked.task or "", name) for run in runs]
        if any(figures):
            own, other = score_of(OWN), score_of(condition)
            note = f"own image less {'another' if condition == 'swapped' else 'a blank one'}"
            found.append(
                Measure(
                    label="gain from the right image", note=note,
                    figures=figures, differences=_differences(asked, _less(own, other), most=2),
                )
            )  # fmt: skip
            break
    guesses = [asked.headline(run) for run in runs]
    if any(f and f.chance is not None for f in guesses):
        chances = [(f and f.chance is not None and Figure(value=f.chance, n=f.n)) or None for f in guesses]
        found.append(
            Measure(label="commonest answer to each question", note="knows no image", figures=chances)
        )
    return found


def _less(own: Value, other: Value) -> Value:
    def value(run: RunAnswers, id: str) -> float | None:
        a, b = own(run, id), other(run, id)
        return None if a is None or b is None else a - b

    return value


def _differences(asked: AskedRuns, value: Value, most: int | None) -> list[Figure | None]:
    """Returns the differences of each run to the first. `most`: runs above which they are left out."""
    n = len(asked.runs)
    if (most is not None and n > most) or not asked.is_mean:
        return [None] * (n - 1)
    return [asked.difference(0, i, value) for i in range(1, n)]


def _looks(asked: AskedRuns) -> list[Measure]:
    found, pair = [], len(asked.runs) == 2
    trained = [run.name for run in asked.runs if _trains_attention(run)]
    for name, (label, of_line) in LOOKS.items():
        figures = [run.figure(asked.task or "", name) for run in asked.runs]
        if any(figures):
            even = next((f.chance for f in figures if f and f.chance is not None), None)
            note = "" if even is None else f"spread evenly {in_percent(even)}"
            if trained:
                note += f"; {in_words(trained)} trained for attention"
            looks = [asked.difference(0, 1, lambda run, id, name=of_line: run.look(id, name))] if pair else []
            found.append(Measure(label=label, note=note, figures=figures, differences=looks))
    return found


def _trains_attention(run: LoadedRun) -> bool:
    """Returns whether a term of the last stage has attention mass as a metric."""
    return bool(run.steps) and any(
        key.startswith("terms/") and key.endswith("/mass") for key in run.steps[-1]
    )


def _puzzles(runs: Sequence[LoadedRun], puzzles: Sequence[PuzzleResult]) -> list[Measure]:
    found = []
    for name in dict.fromkeys(puzzle.instance for puzzle in puzzles):
        of_run = {puzzle.run: puzzle for puzzle in puzzles if puzzle.instance == name}
        some = next(iter(of_run.values()))
        figures = [
            Figure(value=p.right / p.n, chance=p.chance, n=p.n) if (p := of_run.get(i)) and p.n else None
            for i in range(len(runs))
        ]
        kind = "tile order of shuffled images" if some.grid else "shuffled sentences restored"
        note = f"{name}, of {some.n:,}, chance {in_percent(some.chance)}"
        found.append(Measure(label=kind, note=note, figures=figures, absent="not trained"))
    return found


def _costs(runs: Sequence[LoadedRun]) -> list[CostLine]:
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


def _cost_words(runs: Sequence[LoadedRun], costs: Sequence[CostLine]) -> str:
    """Returns what the second run cost beside the first, as a sentence."""
    by_label: dict[str, Any] = {cost.label: cost.ratio for cost in costs}
    steps, tokens, time = (
        by_label.get(k) for k in ("optimizer steps", "tokens read in training", "training time")
    )
    if len(runs) != 2 or not (steps and tokens and time):
        return ""

    def times(ratio: str, what: str) -> str:
        return (
            f"{ratio[2:]} times {what}"
            if ratio.startswith(TIMES)
            else f"about {what}"
            if ratio != "same"
            else what
        )

    first = "the same number of steps" if steps == "same" else times(steps, "the steps")
    return (
        f"For {first} {runs[1].name} read {times(tokens, 'the tokens')} and took {times(time, 'the time')}."
    )
