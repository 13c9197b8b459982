"""Step number -> Step: records, views, layouts, edits, truncation, trees, micro-batches.

A pipeline is plain frozen data, so it pickles into data workers, and a pure function: the step of
a number is the same whatever ran before, in whichever process.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from lmmkit.api.batch import Step
from lmmkit.api.components import AuxTask, TokenStrategy
from lmmkit.api.layout import Layout, insert_tokens, row_count, truncate
from lmmkit.api.sample import Sample, View
from lmmkit.data.chat_templates import AfterEos, lay_out, lay_out_prompt
from lmmkit.data.length_grouping import GroupedSampler
from lmmkit.data.packing import LaidOut, Packer, SizedSample, Unreadable
from lmmkit.data.sampler import Sampler, sample_rng
from lmmkit.data.sources.bad_records import BadRecord
from lmmkit.data.sources.records import Records
from lmmkit.data.text_tokenizers.choose import TextTokenizer
from lmmkit.errors import Problem, UserError
from lmmkit.errors.data import CHANGED, RECORDS_FILE, TOO_LONG

LOST = (CHANGED.code, RECORDS_FILE.code)  # problems of the whole file, not of one record


@dataclass(frozen=True, kw_only=True)
class Views:
    """What a sample becomes: the main view, then each task's, laid out and edited.

    `edits`: each token strategy with the view names it inserts into; `None` is every view.
    """

    tokenizer: TextTokenizer
    image_rows: int
    context: int
    too_long: Literal["error", "truncate", "drop"]
    after_eos: AfterEos
    seed: int
    tasks: tuple[AuxTask, ...] = ()
    edits: tuple[tuple[TokenStrategy, frozenset[str] | None], ...] = ()

    def of(self, sample: Sample, epoch: int) -> list[View]:
        """The views of a sample in this epoch, main first; a task's carry its name."""
        views = [View(sample=sample, supervised=True)]
        for task in self.tasks:
            rng = sample_rng(self.seed, task.name, sample.key, epoch)
            views += [replace(v, name=task.name) for v in task.views(sample, rng)]
        return views

    def lay_out(self, view: View) -> Layout:
        """The whole sequence of a view, learned tokens in place, however long."""
        layout = lay_out(view.sample, self.tokenizer, image_rows=self.image_rows, after_eos=self.after_eos)
        return self._edited(view, layout)

    def prompt(self, view: View) -> Layout:
        """What generation starts from: the sample up to its last user turn, same edits."""
        layout = lay_out_prompt(
            view.sample, self.tokenizer, image_rows=self.image_rows, after_eos=self.after_eos
        )
        return self._edited(view, layout)

    def _edited(self, view: View, layout: Layout) -> Layout:
        edits = []
        for strategy, names in self.edits:
            if names is None or view.name in names:
                edits += [(strategy.name, edit) for edit in strategy.edit(view)]
        return insert_tokens(layout, edits)

    def fitting(self, sample: Sample, epoch: int, dropped: Counter[str]) -> list[LaidOut]:
        """The laid-out views that train, after the length policy; what is left out is counted."""
        kept = []
        for view in self.of(sample, epoch):
            layout = self.lay_out(view)
            if row_count(layout) > self.context:
                if self.too_long == "error":
                    where = f"sample {sample.key}, view `{view.name}`"
                    raise UserError(TOO_LONG.at(where, got=f"{row_count(layout)} rows", context=self.context))
                dropped["truncated" if self.too_long == "truncate" else "too_long"] += 1
                if self.too_long == "drop":
                    continue
                layout = truncate(layout, self.context)
            if view.supervised and not any(span.supervised for span in layout):
                dropped["no_target"] += 1
                continue
            kept.append(LaidOut(view, layout))
        return kept


@dataclass(frozen=True, kw_only=True)
class Pipeline:
    """The data of one stage. `tokens` bounds a micro-batch's rows; `samples` make one step, of which
    each of `world` ranks takes a stretch."""

    sources: Mapping[str, Records]
    order: Sampler | GroupedSampler
    views: Views
    packer: Packer
    samples: int
    tokens: int
    total: int
    rank: int = 0
    world: int = 1

    def positions(self, index: int) -> range:
        """Where in the order this rank's samples of a step stand; every rank's together are the step."""
        first = index * self.samples
        n = min(self.samples, self.total - first)
        return range(first + self.rank * n // self.world, first + (self.rank + 1) * n // self.world)

    def step(self, index: int) -> Step:
        """The micro-batches of optimizer step `index`, from 0; samples in the order's order."""
        return self.step_and_skipped(index)[0]

    def step_and_skipped(self, index: int) -> tuple[Step, tuple[tuple[str, BadRecord], ...]]:
        """Step `index`, and the bad rows met on the way to it, by source.

        Where a source may skip, the row that comes next in the source's order stands in for a bad
        one: what is known bad starts empty with each step, so that this too is a function of the
        step's number and of the files.
        """
        bad: dict[tuple[str, int], BadRecord] = {}
        while True:
            try:
                step = self._packed(index, bad)
                return step, tuple((source, row) for (source, _), row in bad.items())
            except _Spoilt as spoilt:
                bad |= spoilt.rows

    def _packed(self, index: int, bad: Mapping[tuple[str, int], BadRecord]) -> Step:
        """The step without the rows `bad`. Raises `_Spoilt` for more of those."""
        dropped: Counter[str] = Counter({"bad_records": len(bad)} if bad else {})
        trees, placed, spoilt = [], [], {}
        for k in self.positions(index):
            source, epoch, row = self._good(k, bad)
            try:
                sample = self.sources[source][row]
            except UserError as error:
                spoilt[source, row] = self._bad(source, row, "", "", error.problems[0])
                continue
            placed.append((source, row, sample))
            members = self.views.fitting(sample, epoch, dropped)
            if members:
                trees.append(self.packer.tree(members, source))
        packed = []
        for i, part in enumerate(list(cut(trees, self.tokens)) or [[]]):
            try:
                packed.append(self.packer.pack(part, dropped if i == 0 else {})[0])
            except Unreadable as error:
                spoilt |= self._unreadable(placed, error)
        if spoilt:
            raise _Spoilt(spoilt)
        return tuple(packed)

    def _good(self, k: int, bad: Mapping[tuple[str, int], BadRecord]) -> tuple[str, int, int]:
        """What stands at position k, or stands in there for bad rows."""
        source, epoch, row = self.order.at(k)
        for _ in range(len(bad) + 1):
            if (source, row) not in bad:
                return source, epoch, row
            row = self.order.replacement(source, epoch, row)
        raise UserError([each.problem() for (name, _), each in bad.items() if name == source])

    def _unreadable(self, placed, error: Unreadable) -> dict[tuple[str, int], BadRecord]:
        """The rows that asked for pictures which do not read."""
        problems = {(image.path, image.part): problem for image, problem in error.bad}
        return {
            (source, row): self._bad(source, row, sample.key, "image", problems[image.path, image.part])
            for source, row, sample in placed
            for image in sample.images
            if (image.path, image.part) in problems
        }

    def _bad(self, source: str, row: int, said: str, key: str, problem: Problem) -> BadRecord:
        """A row to pass over. Raises `UserError` where its source has none to spare."""
        records = self.sources[source]
        if records.bad_records.kind == "error" or problem.code in LOST:
            where = f"{records.where(row)}, {problem.where}" if key else problem.where
            raise UserError(replace(problem, where=where))
        return BadRecord.of(problem, records.rows.place(row), said, key)


class _Spoilt(Exception):
    def __init__(self, row_count: Mapping[tuple[str, int], BadRecord]) -> None:
        self.rows = row_count


def cut(trees: Iterable[SizedSample], tokens: int) -> Iterable[Sequence[SizedSample]]:
    """Consecutive trees in parts of at most `tokens` rows; a tree is never split."""
    part: list[SizedSample] = []
    for tree in trees:
        if part and sum(t.size for t in part) + tree.size > tokens:
            yield part
            part = []
        part.append(tree)
    if part:
        yield part
