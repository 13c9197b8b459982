"""Step number -> Step: records, views, layouts, edits, truncation, trees, micro-batches.

A pipeline is plain frozen data, so it pickles into data workers, and a pure function: the step of
a number is the same whatever ran before, in whichever process.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from lmmkit.batch import Step
from lmmkit.data.chat import AfterEos, lay_out, lay_out_prompt
from lmmkit.data.order import Order, sample_rng
from lmmkit.data.pack import LaidOut, Packer, Tree
from lmmkit.data.records import Records
from lmmkit.data.tokenizer import AnyTokenizer
from lmmkit.errors import Problem, UserError
from lmmkit.parts import AuxTask, TokenStrategy
from lmmkit.sample import Sample, View
from lmmkit.spans import Layout, merge, rows, truncate


@dataclass(frozen=True, kw_only=True)
class Views:
    """What a sample becomes: the main view, then each task's, laid out and edited.

    `edits`: each token strategy with the view names it inserts into; `None` is every view.
    """

    tokenizer: AnyTokenizer
    image_rows: int
    context: int
    too_long: Literal["error", "truncate", "drop"]
    after_eos: AfterEos
    seed: int
    tasks: tuple[AuxTask, ...] = ()
    edits: tuple[tuple[TokenStrategy, frozenset[str] | None], ...] = ()

    def of(self, sample: Sample, epoch: int) -> list[View]:
        """The views of a sample in this epoch, main first; a task's carry its name."""
        views = [View(sample=sample, learn=True)]
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
        return merge(layout, edits)

    def fitting(self, sample: Sample, epoch: int, dropped: Counter[str]) -> list[LaidOut]:
        """The laid-out views that train, after the length policy; what is left out is counted."""
        kept = []
        for view in self.of(sample, epoch):
            layout = self.lay_out(view)
            if rows(layout) > self.context:
                if self.too_long == "error":
                    raise UserError(_too_long(view, rows(layout), self.context))
                dropped["truncated" if self.too_long == "truncate" else "too_long"] += 1
                if self.too_long == "drop":
                    continue
                layout = truncate(layout, self.context)
            if view.learn and not any(span.learn for span in layout):
                dropped["no_target"] += 1
                continue
            kept.append(LaidOut(view, layout))
        return kept


@dataclass(frozen=True, kw_only=True)
class Pipeline:
    """The data of one stage. `tokens` bounds a micro-batch's rows; `samples` make one step, of which
    each of `world` ranks takes a stretch."""

    sources: Mapping[str, Records]
    order: Order
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
        dropped: Counter[str] = Counter()
        trees = []
        for k in self.positions(index):
            source, epoch, row = self.order.at(k)
            members = self.views.fitting(self.sources[source][row], epoch, dropped)
            if members:
                trees.append(self.packer.tree(members, source))
        cuts = list(cut(trees, self.tokens)) or [[]]
        packed = [self.packer.pack(part, dropped if i == 0 else {})[0] for i, part in enumerate(cuts)]
        return tuple(packed)


def cut(trees: Iterable[Tree], tokens: int) -> Iterable[Sequence[Tree]]:
    """Consecutive trees in parts of at most `tokens` rows; a tree is never split."""
    part: list[Tree] = []
    for tree in trees:
        if part and sum(t.size for t in part) + tree.size > tokens:
            yield part
            part = []
        part.append(tree)
    if part:
        yield part


def _too_long(view: View, n: int, context: int) -> Problem:
    return Problem(
        "data/too-long",
        f"sample {view.sample.key}, view `{view.name}`",
        f"{n} rows",
        f"at most model.text.context = {context}",
        "Raise the context, shorten the row, or set `batch.too_long` to `truncate` or `drop`.",
    )
