"""Draws other samples of a sample's source or step, for views that need them: the same in any process and order."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from lmmkit.api.components import OthersKind
from lmmkit.api.sample import Sample
from lmmkit.data.sampler import philox
from lmmkit.errors import UserError
from lmmkit.errors.plan import OTHERS
from lmmkit.progress import plural


@dataclass(frozen=True)
class SourceSamples:
    """Gives the samples of one source. `read` returns good record i, or None for one that is passed over.

    `step`: those of the step of the sample that asks. Without it, as in an evaluation, they are those of the source.
    """

    name: str
    size: int
    read: Callable[[int], Sample | None]
    step: SourceSamples | None = None

    def of(self, kind: OthersKind) -> SourceSamples:
        """Returns the samples that a component may ask for."""
        return self.step if kind == "step" and self.step is not None else self

    @classmethod
    def among(cls, samples: Sequence[Sample], name: str = "source `evaluation`") -> SourceSamples:
        """Returns the samples of a list as a source."""
        return cls(name, len(samples), samples.__getitem__)


NO_SOURCE = SourceSamples.among(())


class Others:
    """Gives other samples of a sample's source or step; a call is `others(n)`.

    The draws are a function of (seed, instance, key of the sample, epoch). Each call gives the first n of them, none
    twice and never the sample itself. A record that cannot be read is passed over.
    """

    def __init__(self, source: SourceSamples, sample: Sample, seed: int, instance: str, epoch: int):
        self.source, self.sample, self.instance = source, sample, instance
        self._draws = self._drawn(seed, epoch)
        self._found: list[Sample] = []

    def __call__(self, n: int) -> list[Sample]:
        """Returns n samples. Raises `UserError` if there are too few."""
        if type(n) is not int or n < 0:
            raise TypeError(f"others(n): expected a whole number, 0 or more, got {n!r}")
        while len(self._found) < n:
            found = next(self._draws, None)
            if found is None:
                got = f"{plural(len(self._found), 'other sample')} of {self.source.name}, of which {n} are wanted"
                raise UserError(OTHERS.at(f"plugins.{self.instance}, sample {self.sample.key}", got=got))
            self._found.append(found)
        return self._found[:n]

    def _drawn(self, seed: int, epoch: int) -> Iterator[Sample]:
        random = philox("others", seed, self.instance, self.sample.key, epoch).random_raw
        tried: set[int] = set()
        while len(tried) < self.source.size:
            i = int(random()) % self.source.size
            if i in tried:
                continue
            tried.add(i)
            sample = self.source.read(i)
            if sample is not None and sample.key != self.sample.key:
                yield sample
