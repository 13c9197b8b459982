"""What a summary says against its figures: seeds, uneven speed, missing answers, other questions or data."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from lmmkit.evaluate.answers.schema import OWN
from lmmkit.report.asked import AskedRuns, not_adding_up
from lmmkit.report.loaded_run import DRAWN, LoadedRun
from lmmkit.report.sections.measures import Measure
from lmmkit.report.wording import in_words, plain_number, plural
from lmmkit.runs.files import finite

FEW = 10  # images or scenes, below which a bootstrap of them shows too little spread
VARIED = 2.0  # how far apart the 5th and 95th percentile of a speed make times no clean measure


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
        yield f"Tables have all runs; the first {DRAWN} are drawn by type, as curves and among the samples."


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
    for run in runs:
        if run.missing:
            yield f"{run.name} has {in_words(list(run.missing))}."
    for run in runs:
        if run.steps and (begin := int(run.steps[0]["step"])) > run.every:
            yield (
                f"The log of {run.name} begins at step {begin:,}: its tokens and times are without the steps before."
            )
    for run, answers in zip(runs, asked.of, strict=True):
        if answers.whole and not answers.header:
            yield (
                f"{run.name} has no answers.json beside its answers: whether they are to the questions of the other "
                "runs is not known."
            )
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


def _other_questions(asked: AskedRuns) -> Iterator[str]:
    """Yields a sentence for each run whose questions, or whose right answers, are not those of the first."""
    with_answers = [i for i, run in enumerate(asked.of) if run.whole]
    for i in with_answers[1:]:
        first = with_answers[0]
        name, other = asked.runs[i].name, asked.runs[first].name
        n, (a, b) = (
            sum(1 for _ in asked.common(first, i)),
            (len(asked.of[first].answers), len(asked.of[i].answers)),
        )
        hashes = {str(asked.of[k].header.get("data_sha256")) for k in (first, i) if asked.of[k].header}
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


def _other_data(runs: Sequence[LoadedRun]) -> Iterator[str]:
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
