"""Makes the step of a step number: records, views, layouts, edits, truncation, packing, micro-batches.

A pipeline is a frozen dataclass, so it can be pickled for data workers. It is a pure function: the
step of a number does not depend on the process or on the steps made before.
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
from lmmkit.errors.data import RECORDS_CHANGED, RECORDS_FILE, SAMPLE_TOO_LONG

LOST = (RECORDS_CHANGED.code, RECORDS_FILE.code)  # problems of a file, not of one record


@dataclass(frozen=True, kw_only=True)
class Views:
    """Makes the views of a sample: the main view, then those of each task, laid out and edited.

    `edits`: each token strategy with the names of the views that it inserts into; `None` for all.
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
        """Returns the views of a sample in this epoch, main first. The view of a task has the task's name."""
        views = [View(sample=sample, supervised=True)]
        for task in self.tasks:
            rng = sample_rng(self.seed, task.name, sample.key, epoch)
            views += [replace(v, name=task.name) for v in task.views(sample, rng)]
        return views

    def lay_out(self, view: View) -> Layout:
        """Returns the full sequence of a view with its learned tokens, without a limit on its length."""
        layout = lay_out(view.sample, self.tokenizer, image_rows=self.image_rows, after_eos=self.after_eos)
        return self._edited(view, layout)

    def prompt(self, view: View) -> Layout:
        """Returns the layout that generation starts from: up to the last user turn, with the same edits."""
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
        """Returns the laid-out views to train on, after the length policy. Counts in `dropped` what it
        truncates or leaves out. Raises `UserError` for a too long view if `too_long` is "error"."""
        kept = []
        for view in self.of(sample, epoch):
            layout = self.lay_out(view)
            if row_count(layout) > self.context:
                if self.too_long == "error":
                    where = f"sample {sample.key}, view `{view.name}`"
                    raise UserError(
                        SAMPLE_TOO_LONG.at(where, got=f"{row_count(layout)} rows", context=self.context)
                    )
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
    """Describes the data of one stage. `tokens`: most rows of a micro-batch. `samples`: the number of
    samples of a step; each of `world` ranks takes a contiguous part of them."""

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
        """Returns the positions of the samples that this rank takes in a step. All ranks cover the step."""
        first = index * self.samples
        n = min(self.samples, self.total - first)
        return range(first + self.rank * n // self.world, first + (self.rank + 1) * n // self.world)

    def step(self, index: int) -> Step:
        """Returns the micro-batches of optimizer step `index`, from 0. Samples keep the order of `order`."""
        return self.step_and_skipped(index)[0]

    def step_and_skipped(self, index: int) -> tuple[Step, tuple[tuple[str, BadRecord], ...]]:
        """Returns step `index`, and the bad records found while making it, each with its source.

        If a source may skip, the next record in the source's order replaces a bad one. The list of known
        bad records starts empty in each step, so the result depends only on the step number and the files.
        """
        bad: dict[tuple[str, int], BadRecord] = {}
        while True:
            try:
                step = self._packed(index, bad)
                return step, tuple((source, row) for (source, _), row in bad.items())
            except _Spoilt as spoilt:
                bad |= spoilt.rows

    def _packed(self, index: int, bad: Mapping[tuple[str, int], BadRecord]) -> Step:
        """Returns the step without the records `bad`. Raises `_Spoilt` if it finds more bad ones."""
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
        """Returns (source, epoch, record) at position k, or of the replacement if the record is bad."""
        source, epoch, row = self.order.at(k)
        for _ in range(len(bad) + 1):
            if (source, row) not in bad:
                return source, epoch, row
            row = self.order.replacement(source, epoch, row)
        raise UserError([each.problem() for (name, _), each in bad.items() if name == source])

    def _unreadable(self, placed, error: Unreadable) -> dict[tuple[str, int], BadRecord]:
        """Returns the records with images that cannot be read."""
        problems = {(image.path, image.part): problem for image, problem in error.bad}
        return {
            (source, row): self._bad(source, row, sample.key, "image", problems[image.path, image.part])
            for source, row, sample in placed
            for image in sample.images
            if (image.path, image.part) in problems
        }

    def _bad(self, source: str, row: int, said: str, key: str, problem: Problem) -> BadRecord:
        """Returns the bad record to skip. Raises `UserError` if its source may not skip, or lost its file."""
        records = self.sources[source]
        if records.bad_records.kind == "error" or problem.code in LOST:
            where = f"{records.where(row)}, {problem.where}" if key else problem.where
            raise UserError(replace(problem, where=where))
        return BadRecord.of(problem, records.place(row), said, key)


class _Spoilt(Exception):
    def __init__(self, row_count: Mapping[tuple[str, int], BadRecord]) -> None:
        self.rows = row_count


def cut(trees: Iterable[SizedSample], tokens: int) -> Iterable[Sequence[SizedSample]]:
    """Yields consecutive samples in groups of at most `tokens` rows. A sample is never split."""
    part: list[SizedSample] = []
    for tree in trees:
        if part and sum(t.size for t in part) + tree.size > tokens:
            yield part
            part = []
        part.append(tree)
    if part:
        yield part
