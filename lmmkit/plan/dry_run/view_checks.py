"""Checks of the views of a task: pure, with labels of one kind, and edits that keep the form of an image."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from copy import deepcopy
from dataclasses import dataclass, replace
from functools import cached_property

import torch
from torch import Tensor

from lmmkit import plugin_calls
from lmmkit.api.components import AuxTask, ViewMaker
from lmmkit.api.model_info import Dims
from lmmkit.api.sample import ImageEdit, Native, Sample, View
from lmmkit.data.fits.native import native_grid
from lmmkit.data.image_markers import MARKER
from lmmkit.data.micro_batch.labels import join_labels
from lmmkit.data.sampler import sample_rng
from lmmkit.data.sources.other_samples import Others, SourceSamples
from lmmkit.errors import Problem, UserError
from lmmkit.errors.dry_run import EDIT, EDIT_SIZE, IN_PLACE, NO_VIEWS, NOT_PURE
from lmmkit.errors.plan import LABEL
from lmmkit.plan.dry_run.label_checks import plain_text
from lmmkit.plan.dry_run.subject import Check, global_seed, problem
from lmmkit.plugin_calls.guard import returned
from lmmkit.progress import plural

EDITS = 16  # different edits that are tried
# how far an edited image may differ at another size: so often the unedited one, and more
LARGER, ROUGH = 3.0, 0.02
TEXTS = ("", "a", "a b c")  # what a model may answer


@dataclass(frozen=True)
class ViewSubject:
    """Holds a task, or another maker of views, and the samples whose views are made. `step`: the number of samples of
    the smallest step of the stage. `teachers`: the names of those whose features or logits are read of the views."""

    task: ViewMaker
    samples: Sequence[Sample]
    seed: int
    dims: Dims
    step: int
    teachers: tuple[str, ...] = ()

    @cached_property
    def _places(self) -> dict[str, int]:
        """Returns the number of each sample, by key."""
        return {sample.key: i for i, sample in reversed(list(enumerate(self.samples)))}

    def others_of(self, sample: Sample) -> SourceSamples:
        """Returns the samples that the task may ask for beside a sample."""
        if self.task.others != "step":
            return self.source
        first = min(self._places[sample.key] // self.step * self.step, max(len(self.samples) - self.step, 0))
        near = {each.key: each for each in self.samples[first : first + self.step]}
        return SourceSamples.among(list(near.values()), f"a step of {plural(self.step, 'sample')}")

    @cached_property
    def source(self) -> SourceSamples:
        """Returns the samples that the task may ask for."""
        return SourceSamples.among(self.samples)

    @staticmethod
    def copied(sample: Sample) -> Sample:
        """Returns a sample that the task may spoil."""
        return replace(sample, meta=deepcopy(dict(sample.meta)))

    def made(self, sample: Sample) -> list[View]:
        """Returns the views of a sample as the first epoch makes them."""
        rng = sample_rng(self.seed, self.task.name, sample.key, 0)
        others = Others(self.others_of(sample), sample, self.seed, self.task.name, 0)
        return list(plugin_calls.views(self.task, sample, rng, others))

    @cached_property
    def views(self) -> dict[str, list[View]]:
        """Returns the views of all samples, by key of the sample."""
        return {sample.key: self.made(self.copied(sample)) for sample in self.samples}

    @cached_property
    def pixels(self) -> Tensor:
        """Returns drawn pixels to try edits on, wider than high if some images keep their shape."""
        spec = self.dims.image
        size = spec.size, spec.size
        for fit in (each.image_fit for each in self.samples if isinstance(each.image_fit, Native)):
            side = fit.multiple * spec.patch
            lines, columns = native_grid((side, 2 * side), spec.patch, fit.max_patches, fit.multiple)
            size = lines * spec.patch, columns * spec.patch
        return torch.randn(3, *size, generator=torch.Generator().manual_seed(1))

    @property
    def all(self) -> list[View]:
        """Returns the views of all samples."""
        return [view for views in self.views.values() for view in views]


def samples_unchanged(subject: ViewSubject) -> Iterator[Problem]:
    """Finds a task that writes into the sample it is given."""
    for sample in subject.samples:
        given = subject.copied(sample)
        subject.made(given)
        if given.meta != sample.meta:
            got, expected = f"sample {sample.key}: `meta` changed", "a new sample (`dataclasses.replace`)"
            yield problem(IN_PLACE, subject.task.name, "views", subject.task, got, expected=expected)
            return


def pure_views(subject: ViewSubject) -> Iterator[Problem]:
    """Makes the views of each sample twice, with other global generators and in another order."""
    subject.all  # noqa: B018 (the first call)
    with global_seed(1):
        again = {sample.key: subject.made(subject.copied(sample)) for sample in reversed(subject.samples)}
    for sample in subject.samples:
        if not same_views(subject.views[sample.key], again[sample.key], subject.pixels):
            got = f"sample {sample.key}: other views in a second call with the same `rng`"
            expected = "views that depend on nothing but `sample` and `rng`"
            yield problem(NOT_PURE, subject.task.name, "views", subject.task, got, expected=expected)
            return


def same_views(first: Sequence[View], second: Sequence[View], pixels: Tensor) -> bool:
    """Returns whether views are equal, with edits that are equal or that change `pixels` in the same way."""
    if [_without_edits(view) for view in first] != [_without_edits(view) for view in second]:
        return False
    pairs = zip(_edits(first), _edits(second), strict=True)
    return all(a == b or (a is not None and b is not None and _alike(a, b, pixels)) for a, b in pairs)


def _alike(a: ImageEdit, b: ImageEdit, pixels: Tensor) -> bool:
    try:
        return torch.equal(a(pixels.clone()), b(pixels.clone()))
    except Exception:  # `pure_edits` reports it
        return True


def _edits(views: Iterable[View]) -> list[ImageEdit | None]:
    """Returns the edit of each image of some views."""
    return [image.edit for view in views for image in view.sample.images]


def _without_edits(view: View) -> tuple[View, dict[str, object]]:
    """Returns a view without labels and without the edits of its images, and its labels as plain values."""
    images = tuple(replace(image, edit=None) for image in view.sample.images)
    labels: dict[str, object] = {key: plain_text(label) for key, label in view.labels.items()}
    return replace(view, labels={}, sample=replace(view.sample, images=images)), labels


def views_digest(subject: ViewSubject) -> str:
    """Returns a digest of the views of all samples, the same in each process."""
    lines = [
        f"{_without_edits(view)} {[_edit_text(edit) for edit in _edits([view])]}" for view in subject.all
    ]
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()


def _edit_text(edit: ImageEdit | None) -> str:
    """Returns an edit as text; empty if the text would contain an address in memory."""
    text = repr(edit)
    return "" if " at 0x" in text else text


def some_views(subject: ViewSubject) -> Iterator[Problem]:
    """Finds a task that makes no view of any sample."""
    if not subject.all:
        got = f"no view of {plural(len(subject.samples), 'sample')}"
        yield problem(NO_VIEWS, subject.task.name, "views", subject.task, got)


def no_markers(subject: ViewSubject) -> Iterator[Problem]:
    """Finds views whose text has the marker of an image, which is text there, and which their sample does not have."""
    for sample in subject.samples:
        own = any(MARKER in turn.text for turn in sample.turns)
        if not own and any(MARKER in t.text for view in subject.views[sample.key] for t in view.sample.turns):
            got = f"sample {sample.key}: a turn with `{MARKER}` in its text"
            expected = "the number of images of a turn as `Turn.images`, their places as `Turn.places`"
            yield from returned(subject.task.name, "views", subject.task, got, expected).problems
            return


def uniform_view_labels(subject: ViewSubject) -> Iterator[Problem]:
    """Finds labels that cannot be one tensor: of unlike types, or that only some views have."""
    try:
        join_labels(replace(view, name=subject.task.name) for view in subject.all)
    except UserError as error:
        got = f"{error.problems[0].where}: {error.problems[0].got}"
        yield problem(LABEL, subject.task.name, "views", subject.task, got)


def pure_edits(subject: ViewSubject) -> Iterator[Problem]:
    """Applies the edits of images: they must compare equal, keep shape and type, and change no input."""
    for change in _distinct(_edits(subject.all)):
        if wrong := _wrong_edit(subject.task.name, change, subject.pixels):
            yield problem(EDIT, subject.task.name, "edit of an image", change, wrong)
            return
    again = replace(subject)
    pairs = zip(_edits(subject.all), _edits(again.all), strict=True)
    if unlike := next((one for one, other in pairs if one is not None and one != other), None):
        got = "two edits of one image that do not compare equal"
        yield problem(EDIT, subject.task.name, "edit of an image", unlike, got)


def edits_at_other_sizes(subject: ViewSubject) -> Iterator[Problem]:
    """Finds an edit that changes another part of an image where a teacher reads it in another size."""
    for name in subject.teachers:
        size, own = subject.dims.teachers[name].size, subject.dims.image.size
        for change in _distinct(_edits(subject.all)) if size != own else ():
            off, least = disagreement(subject.task.name, change, own, size)
            if off > LARGER * least + ROUGH:
                got = f"images of {own} and {size} pixels that differ by {off:.2f} of what the edit changes"
                yield problem(EDIT_SIZE, subject.task.name, "edit of an image", change, got, teacher=name)
                return


def disagreement(name: str, change: ImageEdit, own: int, size: int) -> tuple[float, float]:
    """Returns the difference of an edited image of `own` pixels a side and one of `size`, as a share of what the edit
    changes; and that of the images without the edit. Both are one smooth image, compared in the smaller size."""
    plain = [smooth_image(n) for n in (own, size)]
    edited = [plugin_calls.edited(name, change, pixels.clone()) for pixels in plain]
    (a, b), (c, d) = ([area_means(pixels, min(own, size)) for pixels in each] for each in (plain, edited))
    scale = (d - b).abs().mean().clamp(min=1e-6)
    return float((c - d).abs().mean() / scale), float((a - b).abs().mean() / scale)


def smooth_image(n: int) -> Tensor:
    """Returns a drawn image of low frequencies, [3, n, n]: the same one at each size."""
    height = torch.randn(3, 4, 4, generator=torch.Generator().manual_seed(1))
    wave = torch.cos(torch.pi * torch.arange(4)[:, None] * (torch.arange(n) + 0.5) / n)
    return torch.einsum("cij,ix,jy->cxy", height, wave, wave)


def area_means(pixels_CXY: Tensor, to: int) -> Tensor:
    """Returns an image in a smaller size: means over what is under each of its pixels, also over parts of them."""
    n = pixels_CXY.shape[-1]
    first = torch.maximum(torch.arange(to)[:, None] / to, torch.arange(n) / n)
    last = torch.minimum(torch.arange(1, to + 1)[:, None] / to, torch.arange(1, n + 1) / n)
    share = (last - first).clamp(min=0) * to
    return share @ pixels_CXY @ share.T


def _distinct(found: Iterable[ImageEdit | None]) -> list[ImageEdit]:
    """Returns some edits that differ; they need not have a hash."""
    distinct: list[ImageEdit] = []
    for edit in found:
        if edit is not None and len(distinct) < EDITS and edit not in distinct:
            distinct.append(edit)
    return distinct


def _wrong_edit(name: str, change: ImageEdit, pixels: Tensor) -> str:
    """Returns what is wrong with an edit; empty if nothing is."""
    try:
        hash(change)
    except TypeError as error:
        return f"an edit that cannot be hashed ({error})"
    given = pixels.clone()
    with global_seed(1):
        first = plugin_calls.edited(name, change, given).clone()
    if not torch.equal(given, pixels):
        return "an edit that changes the pixels it is given"
    with global_seed(2):
        second = plugin_calls.edited(name, change, given)
    if not first.isfinite().all():
        return "pixels that are not finite"
    return "" if torch.equal(first, second) else "other pixels in a second call"


def sound_scores(subject: ViewSubject) -> Iterator[Problem]:
    """Scores the right answer and others, for a task with a text loss."""
    task = subject.task
    for view in subject.all[:4] if isinstance(task, AuxTask) and task.text_loss else ():
        assert isinstance(task, AuxTask), "no other has views here"
        right = view.sample.turns[-1].text
        best, chance = plugin_calls.score(task, view, right)
        for text in TEXTS:
            plugin_calls.score(task, view, text)
        if best < chance:
            got = f"{best:.6g} for the right answer, and {chance:.6g} for a guess"
            expected = "the larger score for the right answer"
            yield from returned(subject.task.name, "score", subject.task, got, expected).problems
            return


CHECKS: tuple[Check[ViewSubject], ...] = (
    samples_unchanged, pure_views, some_views, no_markers, uniform_view_labels, pure_edits, edits_at_other_sizes,
    sound_scores,
)  # fmt: skip
