"""Exact match of short answers, by question type, with controls and the majority baseline."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from itertools import groupby

from lmmkit.api.sample import Sample, View
from lmmkit.evaluate.controls import with_controls
from lmmkit.evaluate.stats import mean_with_interval
from lmmkit.evaluate.task import Better, EvalTask, Figure, Line, percent
from lmmkit.inference.chat_model import ChatModel
from lmmkit.majority import Majority
from lmmkit.plan.stage_plan import StagePlan


class ExactMatch(EvalTask):
    """Compares the greedy answer to the last question of each sample with its last turn, both trimmed.

    Figures: "accuracy", "accuracy/TYPE" for each `meta["type"]`, and the same as "accuracy_CONTROL". Intervals
    are clustered by `meta["scene"]`. Chance is the accuracy of the majority baseline.
    """

    needs_baseline = True

    def run(
        self, chat_model: ChatModel, samples: Sequence[Sample], *,
        controls: Iterable[str] = (), baseline: Majority | None = None,
    ) -> dict[str, Figure]:  # fmt: skip
        """Returns the accuracies."""
        clusters = [str(s.meta.get("scene", s.key)) for s in samples]
        guessed = None if baseline is None else _guessed(baseline, samples)
        out = {}
        for control, asked in with_controls(samples, controls, chat_model.prepared.dims.image).items():
            right = self._right(chat_model, asked)
            for detail, members in _by_type(samples).items():
                chance = None
                if guessed is not None and members:
                    chance = sum(guessed[i] for i in members) / len(members)
                out[f"accuracy{control}{detail}"] = mean_with_interval(
                    [right[i] for i in members], [clusters[i] for i in members], chance=chance
                )
        return out

    def figures(self, plan: StagePlan) -> dict[str, Better]:
        """Returns the accuracy on the complete data."""
        return {"accuracy": "higher"}

    def table(self, figures: Mapping[str, Figure]) -> list[Line]:
        """Returns the headings, then one line for each question type, and one for all."""
        conditions = [name for name in figures if "/" not in name]
        details = [name.removeprefix("accuracy") for name in figures if name.startswith("accuracy/")]
        images = [name.removeprefix("accuracy_").replace("accuracy", "image") for name in conditions]
        lines: list[Line] = [("questions", *images, "majority", "n")]
        for detail in (*details, ""):
            first, *others = (figures[condition + detail] for condition in conditions)
            shown = [figure.in_percent() for figure in (first, *others)]
            lines.append((detail.removeprefix("/") or "all", *shown, percent(first.chance), str(first.n)))
        return lines

    def _right(self, chat_model: ChatModel, samples: Sequence[Sample]) -> list[float]:
        views = [View(sample=replace(s, turns=s.turns[:-1])) for s in samples]
        groups = [list(g) for _, g in groupby(views, key=lambda view: view.sample.images)]
        answers = chat_model.answer(groups, max_new_tokens=self.section.max_new_tokens)
        return [float(_is_right(a, s)) for a, s in zip(answers, samples, strict=True)]


def baseline_of(training: Iterable[Sample]) -> Majority:
    """Returns the majority baseline that knows the answers of these samples."""
    return Majority(
        (question.text.strip(), _type(sample), answer.text.strip())
        for sample in training
        for question, answer in zip(sample.turns[::2], sample.turns[1::2], strict=False)
        if answer.supervised
    )


def _guessed(baseline: Majority, samples: Sequence[Sample]) -> list[bool]:
    return [_is_right(baseline.answer(s.turns[-2].text.strip(), _type(s)), s) for s in samples]


def _is_right(answer: str | None, sample: Sample) -> bool:
    """Compares an answer, of the model or of the baseline, with the last turn of the sample; both trimmed."""
    return answer is not None and answer.strip() == sample.turns[-1].text.strip()


def _type(sample: Sample) -> str:
    return str(sample.meta.get("type", ""))


def _by_type(samples: Sequence[Sample]) -> dict[str, list[int]]:
    """Returns the indices of all samples under "", and those of each type under "/TYPE"."""
    members = defaultdict(list)
    for i, sample in enumerate(samples):
        if "type" in sample.meta:
            members[f"/{_type(sample)}"].append(i)
    return {"": list(range(len(samples))), **dict(sorted(members.items()))}
