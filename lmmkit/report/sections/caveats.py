"""What a summary says against its figures: seeds, uneven speed, missing answers, other questions or data."""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Iterator, Sequence
from typing import TypeVar

import numpy as np

from lmmkit.evaluate.answers.schema import OWN
from lmmkit.progress import plural
from lmmkit.report.asked import AskedRuns, not_adding_up
from lmmkit.report.loaded_run import DRAWN, LoadedRun
from lmmkit.report.sections.measures import Measure
from lmmkit.report.wording import in_words, plain_number
from lmmkit.runs.files import finite

FEW = 10  # images or scenes, below which a bootstrap of them shows too little spread
NAMED = 6  # runs that one sentence names
VARIED = 2.0  # how far apart the 5th and 95th percentile of a speed make times no clean measure

Shared = TypeVar("Shared", bound=Hashable)


def cautions(asked: AskedRuns, own: Measure | None) -> Iterator[str]:
    """Yields what the intervals do not show. `own`: the accuracy, if there is one."""
    runs = asked.runs
    if own is None:
        return
    every = [each[OWN].cluster or id for of in asked.of for id, each in of.answers.items()]
    if any(own.differences) and (n := len(set(every))) < FEW:
        what = "have no interval" if n == 1 else "have intervals that are too narrow"
        yield f"The questions are about {plural(n, 'image or scene', 'images or scenes')}: differences {what}."
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
        yield (
            "All runs are in the summary, in the means of training and among the recipe differences; "
            f"the first {DRAWN} are drawn by type and as curves, and have samples, plans and environment."
        )


def uneven_speed(runs: Sequence[LoadedRun]) -> str:
    """Returns which runs varied in speed, so that their times say little; empty without any."""
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


def distrust(asked: AskedRuns) -> Iterator[str]:
    """Yields what keeps the figures from being trusted."""
    runs = asked.runs
    for run in runs:
        if run.unfinished:
            yield f"{run.name} {run.unfinished}. Its figures are not final."
    for missing, names in _by((run.missing, run.name) for run in runs):
        if missing:
            yield f"{_listed(names)} {'has' if len(names) == 1 else 'have'} {in_words(list(missing))}."
    yield from _late_logs(runs)
    yield from _short_logs(runs)
    bare = [
        run.name for run, answers in zip(runs, asked.of, strict=True) if answers.whole and not answers.header
    ]
    if bare:
        yield (
            f"{_listed(bare)} {'has' if len(bare) == 1 else 'have'} no answers.json beside its answers: whether they "
            "are to the questions of the other runs is not known."
        )
    if asked.task is None:
        yield "No run has results of questions, so there is no accuracy: `lmmkit eval RUN` writes them."
    without = [run.name for run, answers in zip(runs, asked.of, strict=False) if not answers.whole]
    if asked.task and without:
        yield (
            f"No answers of task {asked.task} in {_listed(without)}: no paired comparison and no samples there. That "
            "two intervals overlap shows nothing about a difference. `lmmkit eval RUN` writes the answers."
        )
    if asked.task and not asked.is_mean:
        values = [f"{run.name} {plain_number(f.value)}" for run in runs if (f := asked.headline(run))]
        yield (
            f"The headline of task {asked.task} is {asked.figure}, no mean of scores, so the runs are not compared by "
            f"question here: {_listed(values)}. `lmmkit answers compare` compares the scores."
        )
    yield from _other_questions(asked)
    yield from _other_data(runs)
    if found := not_adding_up(asked):
        more = f" and {len(found) - NAMED} more" if len(found) > NAMED else ""
        yield (
            f"Answers do not add up to results.json: {'; '.join(found[:NAMED])}{more}. The figures are those of "
            "results.json; do not trust the differences."
        )


def _other_questions(asked: AskedRuns) -> Iterator[str]:
    """Yields a sentence about the runs whose questions, or whose right answers, are not those of the first."""
    with_answers = [i for i, run in enumerate(asked.of) if run.whole]
    found = []
    for i in with_answers[1:]:
        first = with_answers[0]
        n = sum(1 for _ in asked.common(first, i))
        hashes = {str(asked.of[k].header.get("data_sha256")) for k in (first, i) if asked.of[k].header}
        a, b = (len(asked.of[k].answers) for k in (first, i))
        found.append(((n, a, b, len(hashes) > 1), asked.runs[i].name))
    for (n, a, b, other_version), names in _by(found):
        other = asked.runs[with_answers[0]].name
        if n < max(a, b):
            yield (
                f"{_listed(names)} answered another set of questions than {other}: {n:,} of {b:,} and {a:,} are the "
                "same. Differences are of these; the other figures are each run's own."
            )
        elif other_version:
            yield (
                f"{_listed(names)} answered another version of the questions than {other}: the prompts are the same, "
                "but not all right answers, types or scenes."
            )


def _late_logs(runs: Sequence[LoadedRun]) -> Iterator[str]:
    """Yields a sentence about the runs whose log lacks the first steps, as that of a grid's later stage does."""
    late = [(r.name, int(r.steps[0]["step"])) for r in runs if r.steps and int(r.steps[0]["step"]) > r.every]
    if len(late) == 1:
        ((name, begin),) = late
        yield f"The log of {name} begins at step {begin:,}: its tokens and times are without the steps before."
    elif late:
        found = _listed([f"{name} (step {begin:,})" for name, begin in late])
        yield f"The logs of {found} begin late: their tokens and times are without the steps before."


def _short_logs(runs: Sequence[LoadedRun]) -> Iterator[str]:
    """Yields a sentence about the finished runs whose log lacks the last steps, as far as their recipes have lengths in
    steps."""
    short = []
    for run in runs:
        lengths = [stage.length.steps or 0 for stage in run.recipe.stages.values()] if run.recipe else [0]
        if run.unfinished or not run.steps or not all(lengths):
            continue
        last, end = int(run.steps[-1]["step"]), sum(lengths)
        if last < end - end % run.every:
            short.append(f"{run.name} (step {last:,} of {end:,})")
    if short:
        yield (
            f"The log{'s' * (len(short) > 1)} of {_listed(short)} end{'s' * (len(short) == 1)} early: tokens and times "
            "are without the steps after."
        )


def _other_data(runs: Sequence[LoadedRun]) -> Iterator[str]:
    """Yields a sentence about the runs that were trained on another version of a source of the first."""
    first, found = runs[0].facts.get("data"), []
    for run in runs[1:]:
        data = run.facts.get("data")
        if isinstance(first, dict) and isinstance(data, dict):
            changed = tuple(name for name in first if name in data and first[name] != data[name])
            found.append(((changed, tuple(sorted(set(first) ^ set(data)))), run.name))
    for (changed, other), names in _by(found):
        was = "was" if len(names) == 1 else "were"
        if changed:
            yield f"{_listed(names)} {was} trained on another version of {in_words(list(changed))} than {runs[0].name}."
        if other:
            yield (
                f"{_listed(names)} {was} trained on other sources than {runs[0].name}: "
                f"{in_words(list(other))} in one of them."
            )


def _by(found: Iterable[tuple[Shared, str]]) -> Iterable[tuple[Shared, list[str]]]:
    """Returns the names that have each key, in order."""
    names: dict[Shared, list[str]] = {}
    for key, name in found:
        names.setdefault(key, []).append(name)
    return names.items()


def _listed(names: list[str]) -> str:
    """Returns at most six names in words, and how many more there are."""
    return in_words(names if len(names) <= NAMED else [*names[:NAMED], f"{len(names) - NAMED} more"])
