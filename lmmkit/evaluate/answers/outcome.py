"""What the answers of a task come to: figures, coverage, and the files beside `answers.jsonl`."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from lmmkit.evaluate.answers.probe import gains_of_sums, probe_figures, renamed
from lmmkit.evaluate.answers.schema import OWN, Answer, AnswerKey
from lmmkit.evaluate.answers.scorer import Scorer
from lmmkit.evaluate.answers.uploads import write_uploads
from lmmkit.evaluate.benchmarks.benchmark import Item, Status, Verdict
from lmmkit.evaluate.judge import judged, write_requests
from lmmkit.evaluate.task import Figure
from lmmkit.runs.files import read_json, write_json_atomic

SUMMARY, REQUESTS = "summary.json", "judge_requests.jsonl"
SHOWN, LONGEST = 10, 32  # most kinds of parsed answers in a histogram, and characters of one
JUDGE_RUNS = 3  # as LLaVA-1.5 was judged


@dataclass(frozen=True, kw_only=True)
class Answered:
    """Holds the answers of a task by condition and id, and what they come to. `alone`: the comparison with questions
    that were asked alone, if any were."""

    answers: Mapping[AnswerKey, Answer]
    figures: dict[str, Figure]
    status: Status
    coverage: dict[str, Any]
    alone: dict[str, Any] | None = None

    def facts(self) -> dict[str, Any]:
        """Returns what `results.json` holds beside the figures."""
        alone = {} if self.alone is None else {"alone": self.alone}
        return {"status": self.status, "coverage": self.coverage, **alone}


def outcome_of(
    items: Sequence[Item], scorer: Scorer, controls: Sequence[str], answers: Mapping[AnswerKey, Answer]
) -> Answered:  # fmt: skip
    """Returns the figures. A rank without the answers has none."""
    own = [answers[key] for item in items if (key := (OWN, item.id)) in answers]
    status = scorer.status(items)
    coverage: dict[str, Any] = {
        "expected": len(items),
        "answered": len(own),
        "unparsed": sum(answer.parsed is None for answer in own),
        "fallback": sum(answer.fallback for answer in own),
        "truncated": sum(bool(answer.hit_max_tokens) for answer in own),
    }
    kinds = Counter(answer.parsed for answer in own)
    if len(kinds) <= SHOWN and all(len(parsed or "") <= LONGEST for parsed in kinds):
        coverage["parsed"] = {str(parsed): n for parsed, n in kinds.most_common()}
    figures: dict[str, Figure] = {}
    if len(own) == len(items):
        verdicts = {OWN: [verdict_of(answer) for answer in own]}
        figures = dict(scorer.figures(items, verdicts[OWN]))
        for control in controls:
            # an item without an image has one answer for all conditions
            shown = [answers.get((control, item.id), answers[OWN, item.id]) for item in items]
            if all((control, item.id) in answers or not item.images for item in items):
                verdicts[control] = [verdict_of(answer) for answer in shown]
                of_control = scorer.figures(items, verdicts[control])
                figures |= {renamed(name, control): figure for name, figure in of_control.items()}
        figures |= probe_figures(answers, controls) | gains_of_sums(items, scorer, verdicts)
    return Answered(answers=answers, figures=figures, status=status, coverage=coverage)


def verdict_of(answer: Answer) -> Verdict:
    """Returns the verdict that an answer holds."""
    return Verdict(parsed=answer.parsed, score=answer.score, lenient=answer.lenient, fallback=answer.fallback)


def write_task_summary(
    task: str, split: str, scorer: Scorer, items: Sequence[Item], outcome: Answered, folder: Path, *,
    whole: bool = True,
) -> None:  # fmt: skip
    """Writes `summary.json`, and the files for a test server or a judge, which take the answers of all items.

    `whole`: whether `items` are all of the split.
    """
    summary = {
        "task": task, "benchmark": scorer.name, "split": split, **outcome.facts(),
        "caveats": list(scorer.caveats),
        "figures": {name: asdict(figure) for name, figure in outcome.figures.items()},
    }  # fmt: skip
    raws = {answer.id: answer.raw for answer in outcome.answers.values() if answer.condition == OWN}
    if whole and len(raws) == len(items):
        upload = write_uploads(scorer, items, raws, folder, split=split)
        if upload is not None:
            summary["upload"] = upload.name
        judge = scorer.judge(items, raws)
        if judge is not None:
            write_requests(folder / REQUESTS, judged(judge, JUDGE_RUNS).waiting)
            summary["judge"] = REQUESTS
    write_json_atomic(folder / SUMMARY, summary)


def facts_in(folder: Path) -> dict[str, Any]:
    """Returns what the summary in a task's folder says beside the figures."""
    summary = read_json(folder / SUMMARY)
    return {key: summary[key] for key in ("status", "coverage", "alone", "upload", "judge") if key in summary}
