"""Makes the views of a sample, lays them out, and applies edits and the length policy."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal, get_args

from lmmkit import plugin_calls
from lmmkit.api.components import AuxTask, Loss, TokenStrategy, TokenWeight, ViewMaker
from lmmkit.api.layout import CharWeight, Insert, Layout, insert_tokens, row_count, truncate
from lmmkit.api.model_info import Dims
from lmmkit.api.needs import Need, selector, selects_rows
from lmmkit.api.sample import AfterEos, Label, Sample, Supervision, View
from lmmkit.data.chat_templates import lay_out, lay_out_prompt
from lmmkit.data.fits.rows import RowsOf, RowsOfGrid, rows_by_shape
from lmmkit.data.layout_writer import WeightsOf
from lmmkit.data.micro_batch.laid_out import LaidOut
from lmmkit.data.sampler import sample_rng
from lmmkit.data.sources.other_samples import NO_SOURCE, Others, SourceSamples
from lmmkit.data.text_tokenizers.choose import TextTokenizer
from lmmkit.errors import UserError
from lmmkit.errors.data import SAMPLE_TOO_LONG
from lmmkit.errors.plan import TOKEN, WRONG_VIEW
from lmmkit.plugin_calls.guard import place_of
from lmmkit.progress import plural

DROPPED = {  # what a run leaves out or cuts, one of it and why, by the names under which it is counted
    "records": ("record", "of which nothing is left"),
    "truncated": ("view", "cut to the context"),
    "too_long": ("view", "longer than the context, left out"),
    "no_target": ("view", "without anything supervised, left out"),
    "image_cut": ("view", "of tasks left out, because an image does not fit into the context"),
    "no_rows": ("view", "of tasks left out, because the task reads nothing there"),
    "pairs": ("view", "of tasks left out, because a view to compare with was left out"),
    "bad_records": ("bad record", "replaced"),
    "empty_steps": ("step", "without anything to learn from, which updated nothing"),
}


def dropped_text(dropped: Mapping[str, int]) -> str:
    """Returns what was left out or cut, as one line of text; empty if nothing was."""
    return ", ".join(
        f"{plural(dropped[name], one)} {why}" for name, (one, why) in DROPPED.items() if dropped.get(name)
    )


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

    `rows_of` gives the number of rows of an image, `rows_of_grid` that of one with a grid of its own. `edits`: each
    token strategy with the names of the views that it inserts into; `None` for all. `needs`: those of the stage.
    `losses`, and what weights rows, give labels to the samples, for a model of the sizes `dims`.
    """

    tokenizer: TextTokenizer
    rows_of: RowsOf
    context: int
    too_long: Literal["error", "truncate", "drop"]
    after_eos: AfterEos
    seed: int
    tasks: tuple[ViewMaker, ...] = ()
    edits: tuple[tuple[TokenStrategy, frozenset[str] | None], ...] = ()
    needs: tuple[Need, ...] = ()
    losses: tuple[Loss | TokenWeight, ...] = ()
    dims: Dims | None = None
    rows_of_grid: RowsOfGrid = math.prod  # a row for each patch

    def of(self, sample: Sample, epoch: int, source: SourceSamples = NO_SOURCE) -> list[View]:
        """Returns the views of a sample in this epoch, main first. The view of a task has the task's name.

        `source` has the samples that a task may ask for.
        """
        views = [View(sample=sample, supervision="train")]
        for task in self.tasks:
            rng = sample_rng(self.seed, task.name, sample.key, epoch)
            others = Others(source.of(task.others), sample, self.seed, task.name, epoch)
            views += [_of_task(task, view) for view in plugin_calls.views(task, sample, rng, others)]
        labels = self._labels(sample)
        return [replace(view, sample_labels=labels) for view in views] if labels else views

    def _labels(self, sample: Sample) -> dict[str, Mapping[str, Label]]:
        """Returns the labels that losses give to a sample, by instance."""
        found = {}
        for loss in self.losses:
            assert self.dims is not None, "a loss is asked for labels with the sizes of the model"
            if given := plugin_calls.labels(loss, sample, self.dims):
                found[loss.name] = given
        return found

    def lay_out(self, view: View) -> Layout:
        """Returns the full sequence of a view with its learned tokens, without a limit on its length."""
        layout = lay_out(
            view.sample, self.tokenizer, rows_of=self.rows_of_sample(view.sample), after_eos=self.after_eos,
            weights_of=self._weights_of(view),
        )  # fmt: skip
        return insert_tokens(layout, self.inserts(view), self.token_id)

    def rows_of_sample(self, sample: Sample) -> RowsOf:
        """Returns what gives the rows of a sample's images: those that have no common size, by their shape."""
        fit, spec = sample.image_fit, None if self.dims is None else self.dims.image
        if spec is None or not spec.size:
            return self.rows_of
        return rows_by_shape(fit, spec, self.rows_of_grid) or self.rows_of

    def measure(self, sample: Sample) -> None:
        """Raises `UserError` if an image has a size that gives it no rows."""
        rows_of = self.rows_of_sample(sample)
        for image in sample.images:
            rows_of(image)

    def _weights_of(self, view: View) -> WeightsOf | None:
        """Returns what weights the characters of answers, if anything does: only those of the main view."""
        given = [
            each for each in self.losses if isinstance(each, TokenWeight) and plugin_calls.has_spans(each)
        ]

        def weights_of(text: str) -> list[CharWeight]:
            return [found for each in given for found in plugin_calls.spans(each, view.sample, text)]

        return weights_of if given and view.name == "main" and view.supervision == "train" else None

    def prompt(self, view: View) -> Layout:
        """Returns the layout that generation starts from: up to the last user turn, with the same learned tokens.

        It begins the layout that training has with an answer, so nothing is inserted at `end`.
        """
        rows_of = self.rows_of_sample(view.sample)
        layout = lay_out_prompt(view.sample, self.tokenizer, rows_of=rows_of, after_eos=self.after_eos)
        edits = [(owner, edit) for owner, edit in self.inserts(view) if edit.at != "end"]
        return insert_tokens(layout, edits, self.token_id)

    def inserts(self, view: View) -> list[tuple[str, Insert]]:
        """Returns the inserts of all token strategies into a view, each with its instance."""
        return [
            (strategy.name, edit)
            for strategy, names in self.edits
            if names is None or view.name in names
            for edit in plugin_calls.edit(strategy, view)
        ]

    def token_id(self, token: str) -> int:
        """Returns the id of a vocabulary token; see `vocabulary_id`."""
        return vocabulary_id(self.tokenizer, token, "tokenizer")

    def fitting(
        self, sample: Sample, epoch: int, dropped: Counter[str], source: SourceSamples = NO_SOURCE
    ) -> list[LaidOut]:
        """Returns the laid-out views to train on, after the length policy. Counts in `dropped` what it
        truncates or leaves out, under the names in `DROPPED`. If one of a task's views that are only read
        ("read") is left out, so are the others: they are compared with each other.

        Raises `UserError` for a too long view if `too_long` is "error"."""
        needs = {
            task.name: plugin_calls.needs(task) if isinstance(task, AuxTask) else self.needs
            for task in self.tasks
        }
        views = self.of(sample, epoch, source)
        made = [(view, self._fitting(view, needs.get(view.name), dropped)) for view in views]
        alone = {v.name for v, layout in made if layout is None and v.supervision == "read"}
        kept = [LaidOut(view, layout) for view, layout in made if layout is not None]
        paired = [m for m in kept if m.view.supervision != "read" or m.view.name not in alone]
        if len(paired) < len(kept):
            dropped["pairs"] += len(kept) - len(paired)
        if not paired:
            dropped["records"] += 1
        return paired

    def _fitting(self, view: View, needs: Sequence[Need] | None, dropped: Counter[str]) -> Layout | None:
        """Returns the layout of a view, cut if necessary; None if it is left out. `needs`: those of the task
        that made it; None for the main view."""
        layout = self.lay_out(view)
        if row_count(layout) > self.context:
            if self.too_long == "error":
                where = f"sample {view.sample.key}, view `{view.name}`"
                raise UserError(
                    SAMPLE_TOO_LONG.at(where, got=f"{row_count(layout)} rows", context=self.context)
                )
            dropped["truncated" if self.too_long == "truncate" else "too_long"] += 1
            if self.too_long == "drop":
                return None
            whole, layout = layout, truncate(layout, self.context)
            if needs is not None and _images(layout) < _images(whole):
                dropped["image_cut"] += 1
                return None
        if not all(selects_rows(need, layout) for need in needs or () if selector(need).takes(view)):
            dropped["no_rows"] += 1
            return None
        if view.supervision != "none" and not any(span.supervised for span in layout):
            dropped["no_target"] += 1
            return None
        return layout


def _of_task(task: ViewMaker, view: View) -> View:
    """Returns a view under the name of its task. Raises `UserError` if the task may not make such a view."""
    wrong = ""
    if view.role not in task.roles:
        wrong = f"a view of role `{view.role}`, and `roles` {list(task.roles)}"
    elif view.supervision not in get_args(Supervision):
        wrong = f"a view of supervision `{view.supervision}`"
    elif view.supervision == "train" and not (isinstance(task, AuxTask) and task.text_loss):
        wrong = "a view of supervision `train`, without `text_loss`"
    if wrong:
        raise UserError(WRONG_VIEW.at(f"{task.name}.views, {place_of(task, 'views')}", got=wrong))
    return replace(view, name=task.name)


def _images(layout: Layout) -> int:
    return sum(span.kind == "image" for span in layout)
