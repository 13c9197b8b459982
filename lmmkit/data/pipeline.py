"""Makes the step of a step number: records, views, layouts, images, packing, micro-batches.

A pipeline is a frozen dataclass, so it can be pickled for data workers. It is a pure function: the
step of a number does not depend on the process or on the steps made before.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import partial

from torch import Tensor

from lmmkit.api.batch import Step
from lmmkit.api.sample import Sample
from lmmkit.data.image_files.image_file import unedited
from lmmkit.data.images import ImageReader, PixelRef, read_each
from lmmkit.data.length_grouping import GroupedSampler
from lmmkit.data.micro_batch.laid_out import SizedSample
from lmmkit.data.micro_batch.packed_images import read_images
from lmmkit.data.packing import Packer
from lmmkit.data.rank_shares import balanced_shares, estimated_rows
from lmmkit.data.sampler import Sampler
from lmmkit.data.sources.bad_records import BadRecord
from lmmkit.data.sources.other_samples import SourceSamples
from lmmkit.data.sources.records import Records
from lmmkit.data.views import Views
from lmmkit.errors import Problem, UserError
from lmmkit.errors.data import RECORDS_CHANGED, RECORDS_FILE, SAMPLE_TOO_LONG

LOST = (RECORDS_CHANGED.code, RECORDS_FILE.code)  # problems of a file, not of one record


@dataclass(frozen=True, kw_only=True)
class Pipeline:
    """Describes the data of one stage. `tokens`: most rows of a micro-batch. `samples`: the number of
    samples of a step; each of `world` ranks takes a part of them with about as many rows. `image_rows`: the
    rows that an image takes."""

    sources: Mapping[str, Records]
    order: Sampler | GroupedSampler
    views: Views
    reader: ImageReader
    packer: Packer
    samples: int
    tokens: int
    total: int
    image_rows: int = 0
    rank: int = 0
    world: int = 1

    def positions(self, index: int) -> Sequence[int]:
        """Returns the positions of the samples that this rank takes in a step, ascending. All ranks cover the
        step."""
        step = self._whole_step(index)
        if self.world == 1:
            return step
        rows = [self._estimated_rows(k) for k in step]
        return [step[i] for i in balanced_shares(rows, self.world)[self.rank]]

    def _whole_step(self, index: int) -> range:
        """Returns the positions of the samples of a step, on all ranks."""
        first = index * self.samples
        return range(first, min(first + self.samples, self.total))

    def _step_records(self, index: int) -> tuple[tuple[str, int], ...]:
        """Returns the distinct records of a step, on all ranks, each with its source; none if no view asks."""
        if all(task.others != "step" for task in self.views.tasks):
            return ()
        places = map(self.order.at, self._whole_step(index))
        return tuple(dict.fromkeys((source, record) for source, _, record in places))

    def _estimated_rows(self, k: int) -> float:
        source, _, record = self.order.at(k)
        return estimated_rows(int(self.sources[source].words_N[record]), self.image_rows)

    def step(self, index: int) -> Step:
        """Returns the micro-batches of optimizer step `index`, from 0. Samples keep the order of `order`."""
        return self.step_and_skipped(index)[0]

    def step_and_skipped(self, index: int) -> tuple[Step, tuple[tuple[str, BadRecord], ...]]:
        """Returns step `index`, and the bad records found while making it, each with its source.

        A record is bad if it, or an image that it needs, cannot be read. If its source may skip, the next
        good record in the source's order replaces it. The list of known bad records starts empty in each
        step, so the result depends only on the step number and the files.
        """
        read = _Read(index, self._step_records(index))
        samples = (sample for k in self.positions(index) if (sample := self._sample(k, read)).members)
        parts = cut(samples, self.tokens)
        step = [self.packer.pack(part, read.images)[0] for part in parts] or [self.packer.pack([], {})[0]]
        if read.bad:
            read.dropped["bad_records"] = len(read.bad)
        step[0] = replace(step[0], dropped=read.dropped)
        return tuple(step), tuple((source, bad) for (source, _), bad in read.bad.items())

    def _sample(self, k: int, read: _Read) -> SizedSample:
        """Returns the sample at position k, or its replacement. Adds to `read` what it reads on the way."""
        source, epoch, record = self.order.at(k)
        for _ in range(len(self.sources[source])):
            if (source, record) not in read.bad:
                found = self._try(source, epoch, record, read)
                if isinstance(found, SizedSample):
                    return found
                read.bad[source, record] = found
            record = self.order.replacement(source, epoch, record)
        raise UserError([bad.problem() for (name, _), bad in read.bad.items() if name == source])

    def _try(self, source: str, epoch: int, record: int, read: _Read) -> SizedSample | BadRecord:
        """Returns one record, laid out, with its images in `read`; or why it is bad."""
        dropped: Counter[str] = Counter()
        try:
            sample = self.sources[source][record]
        except UserError as error:
            return self._bad(source, record, error.problems[0])
        try:
            self.views.measure(sample)
        except UserError as error:
            return self._bad(source, record, error.problems[0], id=sample.key, key="image")
        with _placed(self.sources[source], record):
            views = self.views.fitting(sample, epoch, dropped, self._other_samples(source, read))
        sized = self.packer.sized(views, source)
        try:
            read.images.update(read_images([sized], self.reader, known=read.images))
        except UserError as error:
            return self._bad(source, record, error.problems[0], id=sample.key, key="image")
        read.dropped.update(dropped)
        return sized

    def other_samples(self, source: str, index: int) -> SourceSamples:
        """Returns the samples of a source, and of a step, that views may ask for."""
        return self._other_samples(source, _Read(index, self._step_records(index)))

    def _other_samples(self, source: str, read: _Read) -> SourceSamples:
        """Returns the samples of a source, and of the step that is read, without those that cannot be read. Adds to
        `read` what it reads."""

        def other(source: str, record: int) -> Sample | None:
            if (source, record) in read.bad:
                return None
            key = ""
            try:
                sample = self.sources[source][record]
                key = sample.key
                for image in sample.images:
                    ref = (unedited(image), sample.image_fit)
                    if ref not in read.images:
                        read.images.update(read_each(self.reader, *ref))
            except UserError as error:
                part = "image" if key else ""
                read.bad[source, record] = self._bad(source, record, error.problems[0], id=key, key=part)
                return None
            return sample

        step = SourceSamples(
            f"step {read.index + 1} of the stage", len(read.records), lambda i: other(*read.records[i])
        )
        return SourceSamples(f"source `{source}`", len(self.sources[source]), partial(other, source), step)

    def _bad(self, source: str, record: int, problem: Problem, id: str = "", key: str = "") -> BadRecord:
        """Returns the bad record to skip. Raises `UserError` if its source may not skip, or lost its file."""
        records = self.sources[source]
        if records.bad_records.kind == "error" or problem.code in LOST:
            where = f"{records.where(record)}, {problem.where}" if key else problem.where
            raise UserError(replace(problem, where=where))
        return BadRecord.of(problem, records.place(record), id, key)


@dataclass
class _Read:
    """Collects what step `index` reads: its images without edits, its bad records, and what its layouts drop.
    `records` are those that views may ask for as samples of the step."""

    index: int
    records: tuple[tuple[str, int], ...]
    images: dict[PixelRef, Tensor] = field(default_factory=dict)
    bad: dict[tuple[str, int], BadRecord] = field(default_factory=dict)
    dropped: Counter[str] = field(default_factory=Counter)


def cut(samples: Iterable[SizedSample], tokens: int) -> Iterator[Sequence[SizedSample]]:
    """Yields consecutive samples in groups of at most `tokens` rows. A sample is never split."""
    part: list[SizedSample] = []
    for sample in samples:
        if part and sum(each.size for each in part) + sample.size > tokens:
            yield part
            part = []
        part.append(sample)
    if part:
        yield part


@contextmanager
def _placed(records: Records, record: int) -> Iterator[None]:
    """Names the file and the record of a sample that is too long, which alone knows its key."""
    try:
        yield
    except UserError as error:
        if error.problems[0].code != SAMPLE_TOO_LONG.code:
            raise
        where = records.where(record)
        raise UserError([replace(each, where=f"{where}, {each.where}") for each in error.problems]) from None
