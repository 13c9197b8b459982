"""Makes the views of a sample, lays them out, and applies edits and the length policy."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, replace
from typing import Literal

from lmmkit.api.components import AuxTask, TokenStrategy
from lmmkit.api.layout import Layout, insert_tokens, row_count, truncate
from lmmkit.api.sample import AfterEos, Sample, View
from lmmkit.data.chat_templates import lay_out, lay_out_prompt
from lmmkit.data.images import RowsOf
from lmmkit.data.packing import LaidOut
from lmmkit.data.sampler import sample_rng
from lmmkit.data.text_tokenizers.choose import TextTokenizer
from lmmkit.errors import UserError
from lmmkit.errors.data import SAMPLE_TOO_LONG


@dataclass(frozen=True, kw_only=True)
class Views:
    """Makes the views of a sample: the main view, then those of each task, laid out and edited.

    `rows_of` gives the number of rows of an image. `edits`: each token strategy with the names of the views
    that it inserts into; `None` for all.
    """

    tokenizer: TextTokenizer
    rows_of: RowsOf
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
        layout = lay_out(view.sample, self.tokenizer, rows_of=self.rows_of, after_eos=self.after_eos)
        return self._edited(view, layout)

    def prompt(self, view: View) -> Layout:
        """Returns the layout that generation starts from: up to the last user turn, with the same edits."""
        layout = lay_out_prompt(view.sample, self.tokenizer, rows_of=self.rows_of, after_eos=self.after_eos)
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
