"""Makes the views of a sample, lays them out, and applies edits and the length policy."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Literal

from lmmkit.api.components import AuxTask, TokenStrategy
from lmmkit.api.layout import Insert, Layout, insert_tokens, row_count, truncate
from lmmkit.api.needs import selector, selects_rows
from lmmkit.api.sample import AfterEos, Sample, View
from lmmkit.data.chat_templates import lay_out, lay_out_prompt
from lmmkit.data.images import RowsOf
from lmmkit.data.packing import LaidOut
from lmmkit.data.sampler import sample_rng
from lmmkit.data.text_tokenizers.choose import TextTokenizer
from lmmkit.errors import UserError
from lmmkit.errors.data import SAMPLE_TOO_LONG
from lmmkit.errors.plan import TOKEN

DROPPED = {  # what a run leaves out or cuts, by the names under which it is counted
    "records": "records of which nothing is left",
    "truncated": "views cut to the context",
    "too_long": "views left out, which are longer than the context",
    "no_target": "views left out, in which nothing is supervised",
    "image_cut": "views of tasks left out, because an image does not fit into the context",
    "no_rows": "views of tasks left out, because the task reads nothing in them",
    "bad_records": "bad records replaced",
    "empty_steps": "steps without anything to learn from, which updated nothing",
}


def dropped_text(dropped: Mapping[str, int]) -> str:
    """Returns what was left out or cut, as one line of text; empty if nothing was."""
    return ", ".join(f"{dropped[name]} {what}" for name, what in DROPPED.items() if dropped.get(name))


def vocabulary_id(tokenizer: TextTokenizer, token: str, where: str) -> int:
    """Returns the id of the vocabulary token that an `Insert` names: that of a control token with this spelling,
    else that of the text as it continues a text. Raises `UserError` unless it is one id."""
    control = tokenizer.control(token)
    ids = tokenizer.encode_continued(token) if control is None else [control]
    if len(ids) != 1:
        raise UserError(TOKEN.at(where, got=f"{token!r}, which has {len(ids)} ids"))
    return ids[0]


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
        return insert_tokens(layout, self.inserts(view), self.token_id)

    def prompt(self, view: View) -> Layout:
        """Returns the layout that generation starts from: up to the last user turn, with the same learned tokens.

        It begins the layout that training has with an answer, so nothing is inserted at `end`.
        """
        layout = lay_out_prompt(view.sample, self.tokenizer, rows_of=self.rows_of, after_eos=self.after_eos)
        edits = [(owner, edit) for owner, edit in self.inserts(view) if edit.at != "end"]
        return insert_tokens(layout, edits, self.token_id)

    def inserts(self, view: View) -> list[tuple[str, Insert]]:
        """Returns the inserts of all token strategies into a view, each with its instance."""
        return [
            (strategy.name, edit)
            for strategy, names in self.edits
            if names is None or view.name in names
            for edit in strategy.edit(view)
        ]

    def token_id(self, token: str) -> int:
        """Returns the id of a vocabulary token; see `vocabulary_id`."""
        return vocabulary_id(self.tokenizer, token, "tokenizer")

    def fitting(self, sample: Sample, epoch: int, dropped: Counter[str]) -> list[LaidOut]:
        """Returns the laid-out views to train on, after the length policy. Counts in `dropped` what it
        truncates or leaves out, under the names in `DROPPED`.

        Raises `UserError` for a too long view if `too_long` is "error"."""
        kept = []
        needs = {task.name: [n for n in task.needs if selector(n).view == task.name] for task in self.tasks}
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
                whole, layout = layout, truncate(layout, self.context)
                if view.name in needs and _images(layout) < _images(whole):
                    dropped["image_cut"] += 1
                    continue
            if not all(selects_rows(need, layout) for need in needs.get(view.name, ())):
                dropped["no_rows"] += 1
                continue
            if view.supervised and not any(span.supervised for span in layout):
                dropped["no_target"] += 1
                continue
            kept.append(LaidOut(view, layout))
        if not kept:
            dropped["records"] += 1
        return kept


def _images(layout: Layout) -> int:
    return sum(span.kind == "image" for span in layout)
