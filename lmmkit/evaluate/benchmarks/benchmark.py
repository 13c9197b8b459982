"""The interface of a benchmark: items from its official files, prompts, parsing, scores, an upload file.

A benchmark knows nothing of models: it makes items, and scores texts. It imports no torch, so answers that
another program wrote can be scored without a model. `lmmkit.evaluate.benchmarks.names` lists all benchmarks.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from lmmkit.evaluate.bootstrap import SummedFigure
from lmmkit.evaluate.judge import Judge, Judged
from lmmkit.evaluate.task import Figure, Line

DIFFERENCES = ("visual_gain", "leakage")  # how the names of the probe's differences begin
ATTENTION = ("image_attention", "deciding_attention", "object_attention")
SHARES = (*DIFFERENCES, "changed_", *ATTENTION)  # how those of all figures of the probe begin, in percent
Status = Literal["scored", "pending-server", "pending-judge"]


@dataclass(frozen=True, kw_only=True)
class Item:
    """Describes one question of a benchmark.

    `id`: the official id as text, unique in the split. `prompt`: the text of the user turn, with the suffix that
    asks for a short answer or a letter, without image markers; the images come before it. `images`: paths of
    image files. `gold`: what the scorer needs of the official answer, as JSON values; None if it is not public.
    `cluster`: items of one cluster are not independent, often those on one image; it is the unit of intervals.
    `groups`: the parts of the data that the item counts for, by kind, such as {"subset": "random"}.
    `columns`: texts that no answer repeats: columns of the official table for an upload file, what a judge is shown.
    """

    id: str
    prompt: str
    images: tuple[str, ...] = ()
    gold: Any = None
    cluster: str = ""
    groups: Mapping[str, str] = field(default_factory=dict)
    columns: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """Holds what a scorer read from one answer.

    `parsed`: the answer in the form that is compared; None if the parser found none. `score`: by the official
    rule, in [0, 1]; None if the item cannot be scored here. `lenient`: the score by a more tolerant parser, where
    the official one is known to be harsh. `fallback`: the official parser guessed.
    """

    parsed: str | None
    score: float | None
    lenient: float | None = None
    fallback: bool = False


class Benchmark(ABC):
    """Defines one benchmark. A subclass is one file, and one line in `names.py`.

    `name`: as in `--on`, and the folder of its official files below `--files`. `title`: for tables.
    `splits`: the first is the default. `max_new_tokens`: that of LLaVA-1.5. `headline`: the figure that papers
    report. `scale`: what a figure of 1.0 is called in papers, 100 for percentages. `caveats`: what a reader of
    the number must know; printed with it. `normaliser`: name and version of what `upload` does to an answer.
    """

    name: str
    title: str
    splits: tuple[str, ...]
    max_new_tokens: int
    headline: str
    scale: float = 100.0
    caveats: tuple[str, ...] = ()
    normaliser: str = "none"

    @abstractmethod
    def items(self, files: Path, *, split: str, cache: Path) -> Sequence[Item]:
        """Returns the items of a split from the official files in `files`, in official order.

        Images inside a table are written once below `cache`. Raises `UserError` with all problems: a missing
        file or image, another version or split, duplicate ids, a Git LFS pointer instead of data.
        """

    @abstractmethod
    def verdict(self, item: Item, answer: str) -> Verdict:
        """Returns what the official scorer, and a lenient one if there is one, make of an answer."""

    @abstractmethod
    def figures(self, items: Sequence[Item], verdicts: Sequence[Verdict]) -> dict[str, Figure]:
        """Returns the figures by name, `headline` first; "FIGURE/DETAIL" is a detail of FIGURE.

        Empty if the answers can only be scored by a server or a judge.
        """

    def sums(self, items: Sequence[Item], verdicts: Sequence[Verdict]) -> Mapping[str, SummedFigure]:
        """Returns the figures that are no mean of scores, such as F1, as functions of sums, by name; for the probe."""
        return {}

    def status(self, items: Sequence[Item]) -> Status:
        """Returns whether the items can be scored here."""
        return "scored" if all(item.gold is not None for item in items) else "pending-server"

    def upload(self, items: Sequence[Item], answers: Mapping[str, str]) -> Mapping[str, bytes]:
        """Returns the files that a test server takes, by name; empty if there is no server.

        Raises `UserError` if ids, types or coverage are not what the server accepts.
        """
        return {}

    def judge(self, items: Sequence[Item], answers: Mapping[str, str]) -> Judge | None:
        """Returns how a judge grades these answers, by the id of their items; None if no judge is needed."""
        return None

    def judged_figures(self, items: Sequence[Item], judged: Judged) -> dict[str, Figure]:
        """Returns the figures of judged answers, `headline` first; empty until all requests have a response."""
        return {}

    def table(self, figures: Mapping[str, Figure]) -> list[Line]:
        """Returns the figures as text: the headings, then one line for each figure."""
        lines: list[Line] = [(self.title, "score" if self.scale == 100.0 else "points", "chance", "n")]
        for name, figure in figures.items():
            scale = 100.0 if name.startswith(SHARES) and "/" not in name else self.scale
            value = figure.as_difference(scale) if name.startswith(DIFFERENCES) else figure.scaled(scale)
            value += "" if scale == self.scale else " %"
            chance = "" if figure.chance is None else f"{scale * figure.chance:.1f}"
            lines.append((name, value, chance, f"{figure.n:,}"))
        return lines


class JudgedBenchmark(Benchmark):
    """Defines a benchmark whose answers a judge has to grade. Without its grades there are no figures."""

    def verdict(self, item: Item, answer: str) -> Verdict:
        """Returns the answer without a score."""
        return Verdict(parsed=answer, score=None)

    def figures(self, items: Sequence[Item], verdicts: Sequence[Verdict]) -> dict[str, Figure]:
        """Returns no figures: a judge has to grade the answers."""
        return {}

    def status(self, items: Sequence[Item]) -> Status:
        """Returns that the answers wait for a judge."""
        return "pending-judge"
