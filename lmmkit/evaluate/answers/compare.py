"""Compares two models on the same questions: paired intervals and tests, corrected for the number of tasks.

scipy and statsmodels compute the tests; they are the extra `stats`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from lmmkit.errors import MachineError, UserError
from lmmkit.errors.answers import EXTRA, OTHER_QUESTIONS
from lmmkit.evaluate.answers.schema import OWN, Answer
from lmmkit.evaluate.bootstrap import paired_difference
from lmmkit.evaluate.task import Figure
from lmmkit.progress import counted

LEVEL, POWER = 0.05, 0.8
SIGNS, AT_ONCE = 9999, 1 << 20  # draws of signs, and how many signs at once: scipy has eight copies of them


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """Holds the comparison of two models on one task.

    `first`, `second`: mean scores. `difference`: second minus first, with its interval by clusters.
    `only_first`, `only_second`: questions that only one of them has right. `p`: of McNemar's exact test, or for
    scores between 0 and 1 of a test by random signs; `p_holm`: corrected for all tasks. `detectable`: the smallest
    true difference that a test at 5 % finds four times of five, with these questions; None, as the interval, if all
    are of one cluster. `n`: common questions;
    `left_out`: scored questions that only one of them has answered.
    """

    task: str
    first: float
    second: float
    difference: Figure
    only_first: int
    only_second: int
    p: float
    p_holm: float
    detectable: float | None
    n: int
    left_out: int


def compare_answers(task: str, first: Sequence[Answer], second: Sequence[Answer]) -> Comparison:
    """Returns the comparison of two models' answers with the own images.

    Raises `UserError` if they have no scored question in common, `MachineError` without scipy and statsmodels.
    """
    stats, mcnemar, _ = libraries()
    scored = [
        {a.id: a for a in answers if a.condition == OWN and a.score is not None}
        for answers in (first, second)
    ]
    common = [
        id for id in scored[0] if id in scored[1] and scored[0][id].prompt_sha == scored[1][id].prompt_sha
    ]
    if not common:
        got = f"{len(scored[0]):,} and {len(scored[1]):,} scored answers, none to the same prompt"
        raise UserError(OTHER_QUESTIONS.at(f"task {task}", got=got))
    a, b = (np.array([each[id].score for id in common], float) for each in scored)
    clusters = [scored[0][id].cluster or id for id in common]
    difference = paired_difference(b.tolist(), a.tolist(), clusters)
    right = [a > b, b > a]
    only_first, only_second = (int(each.sum()) for each in right)
    if set(np.unique(np.concatenate([a, b]))) <= {0.0, 1.0}:
        both, neither = int(((a == 1) & (b == 1)).sum()), int(((a == 0) & (b == 0)).sum())
        p = float(mcnemar([[both, only_first], [only_second, neither]], exact=True).pvalue)
    elif len(common) == 1:
        p = 1.0  # both signs are as far from 0
    else:
        p = random_signs(b - a)
    detectable = None
    if difference.low is not None and difference.high is not None:
        error = (difference.high - difference.low) / (2 * stats.norm.ppf(1 - LEVEL / 2))
        detectable = float(error * (stats.norm.ppf(1 - LEVEL / 2) + stats.norm.ppf(POWER)))
    return Comparison(
        task=task, first=float(a.mean()), second=float(b.mean()), difference=difference, only_first=only_first,
        only_second=only_second, p=p, p_holm=p, detectable=detectable, n=len(common),
        left_out=len(scored[0]) + len(scored[1]) - 2 * len(common),
    )  # fmt: skip


def compare_tasks(
    first: Mapping[str, Sequence[Answer]], second: Mapping[str, Sequence[Answer]]
) -> list[Comparison]:  # fmt: skip
    """Returns the comparisons of all common tasks, with Holm's correction."""
    _, _, multipletests = libraries()
    common = [task for task in first if task in second]
    found = [compare_answers(task, first[task], second[task]) for task in counted("comparing", common)]
    if not found:
        return []
    corrected = multipletests([each.p for each in found], method="holm")[1]
    return [replace(each, p_holm=float(p)) for each, p in zip(found, corrected, strict=True)]


def random_signs(values: np.ndarray) -> float:
    """Returns the p of a test whether values are symmetric around 0: their mean beside that with random signs."""
    stats, _, _ = libraries()
    found = stats.permutation_test(
        (values,), np.mean, permutation_type="samples", n_resamples=SIGNS, vectorized=True, rng=0,
        batch=max(1, AT_ONCE // len(values)),
    )  # fmt: skip
    return float(found.pvalue)


def libraries(command: str = "answers compare") -> tuple[Any, Any, Any]:
    """Returns scipy.stats, McNemar's test and the correction for several tests, all of the extra `stats`.

    `command`: what needs them. Raises `MachineError` with the extra's name if one is missing.
    """
    try:
        from scipy import stats
        from statsmodels.stats.contingency_tables import mcnemar
        from statsmodels.stats.multitest import multipletests
    except ImportError as error:
        raise MachineError(EXTRA.at(command, got=f"no {error.name} ({error})", extra="stats")) from error
    return stats, mcnemar, multipletests
