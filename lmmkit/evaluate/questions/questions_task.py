"""Questions of one's own, as records of a source: how many are answered right, by type, beside the majority."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from lmmkit.api.sample import Sample
from lmmkit.data.image_files.image_file import image_place
from lmmkit.errors import raise_all
from lmmkit.errors.answers import NEEDS_TEN
from lmmkit.evaluate.answers.outcome import facts_in
from lmmkit.evaluate.answers.schema import GROUPS, data_sha
from lmmkit.evaluate.benchmarks.benchmark import ATTENTION, DIFFERENCES, Item, Status, Verdict
from lmmkit.evaluate.bootstrap import SummedFigure
from lmmkit.evaluate.keep import Keep
from lmmkit.evaluate.questions.answering import QuestionSet, answer_questions
from lmmkit.evaluate.questions.matching import MATCHES, TEN, parsed_form
from lmmkit.evaluate.stats import mean_with_interval
from lmmkit.evaluate.task import Better, EvalTask, Figure, Line, percent
from lmmkit.inference.chat_model import ChatModel
from lmmkit.majority import Majority
from lmmkit.plan.stage_plan import StagePlan
from lmmkit.progress import plural
from lmmkit.recipe import Control

MAX_NEW_TOKENS = 128


@dataclass(frozen=True, kw_only=True)
class QuestionScorer:
    """Scores answers by a rule of `matching.py`. `guesses`: the majority baseline's answer to each item."""

    match: str
    guesses: Mapping[str, str | None] = field(default_factory=dict)
    name: str = "questions"
    caveats: tuple[str, ...] = ()
    normaliser: str = "none"

    def verdict(self, item: Item, answer: str) -> Verdict:
        """Returns the score of an answer: 0 or 1, or a share for `vqa_soft`."""
        return Verdict(parsed=parsed_form(self.match, answer), score=MATCHES[self.match](answer, item.gold))

    def figures(self, items: Sequence[Item], verdicts: Sequence[Verdict]) -> dict[str, Figure]:
        """Returns the accuracy of all items, and of each group."""
        scores = [verdict.score or 0.0 for verdict in verdicts]
        chances = [self._chance(item) for item in items]
        found = {}
        for detail, members in _by_group(items).items():
            known = self.guesses and members
            chance = sum(chances[i] for i in members) / len(members) if known else None
            found[f"accuracy{detail}"] = mean_with_interval(
                [scores[i] for i in members], [items[i].cluster for i in members], chance=chance
            )
        return found

    def sums(self, items: Sequence[Item], verdicts: Sequence[Verdict]) -> dict[str, SummedFigure]:
        """Returns nothing: the accuracy is a mean of scores."""
        return {}

    def status(self, items: Sequence[Item]) -> Status:
        """Returns that the answers can be scored."""
        return "scored"

    def upload(self, items: Sequence[Item], answers: Mapping[str, str]) -> Mapping[str, bytes]:
        """Returns no files: there is no server."""
        return {}

    def judge(self, items: Sequence[Item], answers: Mapping[str, str]) -> None:
        """Returns no judge."""

    def _chance(self, item: Item) -> float:
        guess = self.guesses.get(item.id)
        return 0.0 if guess is None else self.verdict(item, guess).score or 0.0


class QuestionsTask(EvalTask):
    """Compares the greedy answer to the last question of each sample with the right answers.

    These are the texts in `meta["answers"]`, else the last turn. Figures: "accuracy", "accuracy/TYPE" for each
    `meta["type"]`, "accuracy/PRIOR" for each `meta["prior"]`, the same as "accuracy_CONTROL", and those of the probe.
    Intervals are clustered by `meta["scene"]`. Chance is the score of the majority baseline by the same rule.
    """

    needs_data = True
    needs_baseline = True

    def run(
        self, chat_model: ChatModel, samples: Sequence[Sample], *,
        controls: Iterable[Control] = (), baseline: Majority | None = None, keep: Keep | None = None,
    ) -> dict[str, Figure]:  # fmt: skip
        """Returns the accuracies."""
        items = [item_of(sample) for sample in samples]
        if self.section.match in TEN:
            raise_all(
                NEEDS_TEN.at(
                    f"sample {item.id}", got=plural(len(item.gold), "answer"), match=self.section.match
                )
                for item in items
                if len(item.gold) != 10
            )
        guesses = {}
        if baseline is not None:
            guesses = {s.key: baseline.answer(s.turns[-2].text.strip(), _type(s)) for s in samples}
        asked = QuestionSet(
            task=self.name, split=self.section.data or "", data=data_sha(items), total=len(items), items=items,
            scorer=QuestionScorer(match=self.section.match, guesses=guesses),
            samples=[replace(s, turns=s.turns[:-1]) for s in samples], majority=list(guesses.values()),
            max_new_tokens=self.section.max_new_tokens or MAX_NEW_TOKENS,
        )  # fmt: skip
        controls = tuple(controls)
        return answer_questions(
            chat_model, asked, controls=controls, keep=keep, attention=bool(controls)
        ).figures

    def figures(self, plan: StagePlan) -> dict[str, Better]:
        """Returns the accuracy on the complete data."""
        return {"accuracy": "higher"}

    def facts(self, keep: Keep) -> dict[str, Any]:
        """Returns status and coverage."""
        return facts_in(keep.folder)

    def remarks(self, figures: Mapping[str, Figure]) -> list[str]:
        """Returns the figures of the probe: differences, shares of changed answers, and the attention to the image."""
        lines = [f"{name} {f.as_difference()}" for name, f in figures.items() if name.startswith(DIFFERENCES)]
        changed = [f"{name} {f.in_percent()}" for name, f in figures.items() if name.startswith("changed_")]
        changed += [
            f"{name} {figure.in_percent()}, chance {percent(figure.chance)}"
            for name, figure in figures.items()
            if name in ATTENTION
        ]
        return lines + (["; ".join(changed)] if changed else [])

    def table(self, figures: Mapping[str, Figure]) -> list[Line]:
        """Returns the headings, then one line for each question type, and one for all."""
        conditions = [name for name in figures if name.startswith("accuracy") and "/" not in name]
        details = [name.removeprefix("accuracy") for name in figures if name.startswith("accuracy/")]
        images = [name.removeprefix("accuracy_").replace("accuracy", "image") for name in conditions]
        lines: list[Line] = [("questions", *images, "majority", "n")]
        for detail in (*details, ""):
            first, *others = (figures[condition + detail] for condition in conditions)
            narrow = len(others) > 2  # intervals of all would not fit in 80 columns
            shown = [first.in_percent(), *(percent(f.value) if narrow else f.in_percent() for f in others)]
            lines.append((detail.removeprefix("/") or "all", *shown, percent(first.chance), str(first.n)))
        return lines


def baseline_of(training: Iterable[Sample]) -> Majority:
    """Returns the majority baseline that knows the answers of these samples."""
    return Majority(
        (question.text.strip(), _type(sample), answer.text.strip())
        for sample in training
        for question, answer in zip(sample.turns[::2], sample.turns[1::2], strict=False)
        if answer.supervised
    )


def item_of(sample: Sample) -> Item:
    """Returns the item of a sample; its last turn is the answer, and the one before it the question."""
    given = sample.meta.get("answers")
    gold = list(given) if isinstance(given, tuple) and given else [sample.turns[-1].text]
    return Item(
        id=sample.key, prompt=sample.turns[-2].text, images=tuple(map(image_place, sample.images)),
        gold=gold, cluster=str(sample.meta.get("scene", sample.key)),
        groups={key: str(sample.meta[key]) for key in GROUPS if key in sample.meta},
    )  # fmt: skip


def _type(sample: Sample) -> str:
    return str(sample.meta.get("type", ""))


def _by_group(items: Sequence[Item]) -> dict[str, list[int]]:
    """Returns the indices of all items under "", and those of each type, and then of each prior, under "/NAME"."""
    found = {"": list(range(len(items)))}
    for key in GROUPS:
        members: defaultdict[str, list[int]] = defaultdict(list)
        for i, item in enumerate(items):
            if key in item.groups:
                members[f"/{item.groups[key]}"].append(i)
        found |= dict(sorted(members.items()))
    return found
