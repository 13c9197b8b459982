"""Which samples a step has: the same for any number of ranks and workers, and any step to stop at."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest
from torch import Tensor

from lmmkit.api.components import AuxTask
from lmmkit.api.sample import Image, Sample, View
from lmmkit.data.loader import load_steps
from lmmkit.data.pipeline import Pipeline
from lmmkit.data.sampler import Sampler
from lmmkit.data.sources.bad_records import Policy
from lmmkit.errors import UserError
from lmmkit.errors.data import IMAGE_DAMAGED, RECORDS_CHANGED, ROLES
from lmmkit.training.signals import ignore_in_worker
from tests.support.paper_objective import caption, packer, views
from tests.support.tiny_model import read

TOTAL, SAMPLES, STEPS = 103, 10, 11


class Numbers(Pipeline):
    """Makes steps of positions and record numbers, without any data."""

    def step_and_skipped(self, index: int) -> Any:
        return [[k, *self.order.at(k)] for k in self.positions(index)], ()


def numbers(samples: int = SAMPLES) -> Numbers:
    order, unused = Sampler({"a": 37, "b": 11}, {"a": 0.8, "b": 0.3}, 5), cast(Any, None)
    sources = cast(Any, {name: SimpleNamespace(words_N=np.ones(37, np.int32)) for name in "ab"})
    return Numbers(
        sources=sources, order=order, views=unused, reader=unused, packer=unused, samples=samples, tokens=1,
        total=TOTAL,
    )  # fmt: skip


WHOLE = [[k, *numbers().order.at(k)] for k in range(TOTAL)]


@pytest.mark.parametrize("world", [1, 2, 3, 4, 8, 16])
@pytest.mark.parametrize("samples", [1, 7, 10])
def test_ranks_share_a_step_in_the_order_s_order(world, samples):
    seen, sizes = [], set()
    for index in range(-(-TOTAL // samples)):
        step = [replace(numbers(samples), rank=rank, world=world).step(index) for rank in range(world)]
        assert all(list(share) == sorted(share) for share in step)
        seen += sorted(each for share in step for each in share)
        sizes |= {max(map(len, step)) - min(map(len, step))}
    assert seen == WHOLE and max(sizes) <= 1


@pytest.mark.parametrize(
    "workers", [0, pytest.param(2, marks=pytest.mark.slow), pytest.param(3, marks=pytest.mark.slow)]
)
@pytest.mark.parametrize("world", [1, 2, 4, 8])
@pytest.mark.parametrize("stop", [1, 4, 7, 10])
def test_a_run_stopped_anywhere_goes_on_with_the_same_samples(world, workers, stop):
    """First by one rank without workers, then by others."""
    before = [
        each
        for step in load_steps(numbers(), 0, stop, workers=0, worker_init=ignore_in_worker)
        for each in cast(Any, step)
    ]
    shares = [
        list(
            load_steps(
                replace(numbers(), rank=rank, world=world),
                stop,
                STEPS,
                workers=workers,
                worker_init=ignore_in_worker,
            )
        )
        for rank in range(world)
    ]
    steps = zip(*shares, strict=True)
    after = [each for step in steps for each in sorted(each for share in step for each in cast(Any, share))]
    assert before + after == WHOLE


class Source(list[Sample | UserError]):
    """Replaces `Records`: samples by number, some of which cannot be read."""

    def __init__(self, samples: Sequence[Sample | UserError], kind: Any = "skip"):
        super().__init__(samples)
        self.bad_records = Policy(kind)
        self.words_N = np.ones(len(samples), np.int32)

    def __getitem__(self, i: Any) -> Any:
        sample = super().__getitem__(i)
        if isinstance(sample, UserError):
            raise sample
        return sample

    def where(self, i: int) -> str:
        return f"r.json:{i + 1}"

    def place(self, i: int) -> tuple[str, int, int]:
        return "r.json", i + 1, i


@dataclass
class Reader:
    """Reads noise, except for the paths `broken`, and lists what it was asked for."""

    broken: frozenset[str] = frozenset()
    asked: list[str] = field(default_factory=list)

    def __call__(self, image: Image, fit: str) -> Tensor:
        assert image.edit is None
        self.asked.append(image.path)
        if image.path in self.broken:
            raise UserError(IMAGE_DAMAGED.at(image.path, got="noise"))
        return read(image, fit)


def torn(code=ROLES) -> UserError:
    return UserError(code.at("r.json", got="nothing"))


def pipeline(source: Source, reader: Reader, *, samples: int, tokens: int = 10_000, **settings) -> Pipeline:
    order = Sampler({"a": len(source)}, {"a": 1.0}, 5)
    return Pipeline(
        sources=cast(Any, {"a": source}), order=order, views=views(**settings), reader=cast(Any, reader),
        packer=packer(), samples=samples, tokens=tokens, total=10 * samples,
    )  # fmt: skip


def keys(step: Any) -> list[str]:
    return [key for batch in step for view, key in batch.views if view == "main"]


RECORDS = [caption(f"s{i}", f"the words of record {i}") for i in range(12)]


@pytest.mark.parametrize("tokens", [10_000, 60])
def test_an_image_is_read_once_in_a_step_for_all_views_samples_and_micro_batches(tokens):
    shared = [replace(sample, images=(Image(f"/{i % 3}.png"),)) for i, sample in enumerate(RECORDS)]
    reader = Reader()
    step = pipeline(Source(shared), reader, samples=12, tokens=tokens).step(0)
    assert sorted(reader.asked) == ["/0.png", "/1.png", "/2.png"] and (len(step) > 3) == (tokens == 60)
    assert any(len(batch.pixels_ICXY) > 1 for batch in step)  # the shuffled images are of the same reads


@pytest.mark.parametrize("tokens", [10_000, 60])
def test_bad_records_and_images_are_replaced_along_the_chain_of_the_order(tokens):
    source, reader = Source(RECORDS), Reader(frozenset({"/s2.png", "/s3.png", "/s7.png"}))
    source[4] = torn()
    made = pipeline(source, reader, samples=12, tokens=tokens)
    step, skipped = made.step_and_skipped(0)
    want = []
    for k in range(12):
        _, epoch, record = made.order.at(k)
        while record in (2, 3, 4, 7):
            record = made.order.replacement("a", epoch, record)
        want.append(f"s{record}")
    assert keys(step) == want
    assert {(source, bad.record, bad.id, bad.key, bad.code) for source, bad in skipped} == {
        ("a", 4, "", "", ROLES.code), *(("a", i, f"s{i}", "image", "image/damaged") for i in (2, 3, 7)),
    }  # fmt: skip
    assert len(skipped) == 4 and [batch.dropped.get("bad_records", 0) for batch in step] == [4] + [0] * (
        len(step) - 1
    )
    assert len(reader.asked) == len(set(reader.asked))  # a bad record is tried once
    assert keys(made.step(0)) == want


def test_what_is_cut_from_a_bad_record_is_not_counted():
    long = [caption(f"s{i}", "x" * 300) if i in (1, 5) else sample for i, sample in enumerate(RECORDS)]
    (batch,) = pipeline(Source(long), Reader(), samples=12).step(0)
    assert batch.dropped == {"truncated": 4}  # main and image_order of both
    (batch,) = pipeline(Source(long), Reader(frozenset({"/s1.png", "/s5.png"})), samples=12).step(0)
    assert batch.dropped == {"bad_records": 2}


def test_a_sample_that_is_too_long_is_named_with_its_record():
    long = [caption(f"s{i}", "x" * 300) if i == 5 else sample for i, sample in enumerate(RECORDS)]
    with pytest.raises(UserError) as error:
        pipeline(Source(long), Reader(), samples=12, too_long="error").step(0)
    (problem,) = error.value.problems
    assert (problem.code, problem.where) == ("data/too-long", "r.json:6, sample s5, view `main`")


def test_an_image_that_no_layout_needs_is_not_read():
    reader = Reader(frozenset({"/s1.png"}))
    made = pipeline(Source(RECORDS), reader, samples=12, too_long="drop", context=3)
    assert keys(made.step(0)) == [] and reader.asked == []


def test_a_source_without_a_good_record_is_an_error_that_lists_each():
    source, reader = Source(RECORDS[:3]), Reader(frozenset({"/s0.png", "/s1.png"}))
    source[2] = torn()
    with pytest.raises(UserError) as error:
        pipeline(source, reader, samples=2).step(0)
    assert Counter(p.code for p in error.value.problems) == {"image/damaged": 2, ROLES.code: 1}


def test_a_source_that_may_not_skip_stops_at_the_record():
    reader = Reader(frozenset({"/s1.png"}))
    with pytest.raises(UserError) as error:
        pipeline(Source(RECORDS[:2], "error"), reader, samples=2).step(0)
    assert [p.where for p in error.value.problems] == ["r.json:2, /s1.png"]
    with pytest.raises(UserError) as error:
        pipeline(Source([torn(), RECORDS[0]], "error"), reader, samples=2).step(0)
    assert [p.where for p in error.value.problems] == ["r.json"]


def test_a_lost_file_is_not_a_bad_record():
    source = Source([torn(RECORDS_CHANGED), RECORDS[0]])
    with pytest.raises(UserError) as error:
        pipeline(source, Reader(), samples=2).step(0)
    assert [p.code for p in error.value.problems] == [RECORDS_CHANGED.code]


@dataclass(frozen=True, kw_only=True)
class Negatives(AuxTask):
    """Shows the images of two other samples, each in a view with this sample's text."""

    others = "source"

    def views(self, sample, rng, others):
        return [View(sample=replace(sample, images=other.images)) for other in others(2)]


def negatives(source: Source, reader: Reader, **settings) -> Pipeline:
    made = pipeline(source, reader, **settings)
    return replace(made, views=replace(made.views, tasks=(Negatives(name="negatives"),), edits=()))


def paths(made: Pipeline, index: int) -> dict[str, list[str]]:
    """Returns the images of the views of each sample of a step."""
    found: dict[str, list[str]] = {}
    for k in made.positions(index):
        source, epoch, record = made.order.at(k)
        sample = made.sources[source][record]
        members = made.views.fitting(sample, epoch, Counter(), made.other_samples(source, index))
        found[sample.key] = [m.view.sample.images[0].path for m in members if m.view.name == "negatives"]
    return found


@pytest.mark.parametrize("tokens", [10_000, 60])
def test_other_samples_of_a_step_are_those_of_their_source_that_can_be_read(tokens):
    reader = Reader()
    made = negatives(Source(RECORDS), reader, samples=12, tokens=tokens)
    want = paths(made, 0)
    assert set(want) == {f"s{i}" for i in range(12)}
    for key, (first, second) in want.items():
        assert first != second and f"/{key}.png" not in (first, second)
    step = made.step(0)
    assert len(step) > 3 or tokens > 60
    assert sorted({f"/{key}.png" for key in keys(step)}) == sorted(set(reader.asked))
    assert sum(len(batch.views_of("negatives")) for batch in step) == 24
    assert paths(made, 1) != want, "another epoch"


def test_other_samples_that_cannot_be_read_are_passed_over():
    good = paths(negatives(Source(RECORDS), Reader(), samples=12), 0)
    source, reader = Source(RECORDS), Reader(frozenset({"/s2.png"}))
    source[4] = torn()
    made = negatives(source, reader, samples=12)
    step, skipped = made.step_and_skipped(0)
    assert {(bad.record, bad.key) for _, bad in skipped} == {(2, "image"), (4, "")}
    assert step[0].dropped["bad_records"] == 2
    reads = [v for v in good if v not in ("s2", "s4")]
    bad = {"/s2.png", "/s4.png"}
    for key in reads:
        sample = next(s for s in RECORDS if s.key == key)
        members = made.views.fitting(sample, 0, Counter(), made.other_samples("a", 0))
        found = [m.view.sample.images[0].path for m in members if m.view.name == "negatives"]
        kept = [path for path in good[key] if path not in bad]
        assert found[: len(kept)] == kept and not bad & set(found) and len(set(found)) == 2


def test_a_bad_other_sample_of_a_source_that_may_not_skip_is_an_error():
    with pytest.raises(UserError) as error:
        negatives(Source(RECORDS, "error"), Reader(frozenset({"/s1.png"})), samples=12).step(0)
    assert [p.where for p in error.value.problems] == ["r.json:2, /s1.png"]


def test_a_source_with_too_few_other_samples_is_an_error():
    with pytest.raises(UserError, match="plan/others") as error:
        negatives(Source(RECORDS[:2]), Reader(), samples=2).step(0)
    assert "1 other sample of source `a`, of which 2 are wanted" in error.value.problems[0].got
    assert len(negatives(Source(RECORDS[:3]), Reader(), samples=3).step(0)[0].views_of("negatives")) == 6


@dataclass(frozen=True, kw_only=True)
class OfTheStep(Negatives):
    """Shows the images of two other samples of the step."""

    others = "step"


def of_the_step(source: Source, reader: Reader, **settings) -> Pipeline:
    made = negatives(source, reader, **settings)
    return replace(made, views=replace(made.views, tasks=(OfTheStep(name="negatives"),)))


def members(made: Pipeline, index: int) -> set[str]:
    """Returns the images of the samples of a step."""
    places = (made.order.at(k) for k in range(index * made.samples, (index + 1) * made.samples))
    return {made.sources[source][record].images[0].path for source, _, record in places}


@pytest.mark.parametrize("tokens", [10_000, 60])
def test_other_samples_of_the_step_are_in_it_and_cost_no_further_image(tokens):
    """Packs the same step whole and in parts: what a view shows does not depend on it."""
    reader = Reader()
    made = of_the_step(Source(RECORDS), reader, samples=4, tokens=tokens)
    for index in range(6):
        reader.asked.clear()
        want = paths(made, index)
        assert len(want) == 4 and members(made, index) >= {path for each in want.values() for path in each}
        for key, (first, second) in want.items():
            assert first != second and f"/{key}.png" not in (first, second)
        reader.asked.clear()
        step = made.step(index)
        assert set(reader.asked) == members(made, index) and len(reader.asked) == 4
        assert len(step) > 1 or tokens > 60
        whole = of_the_step(Source(RECORDS), Reader(), samples=4).step(index)
        assert sorted(_shown(step)) == sorted(_shown(whole))
    assert paths(made, 0) != paths(made, 3), "another step has other samples"


def test_a_record_twice_in_a_step_is_offered_once():
    """Steps of 5 of 3 records: each sample has two others, though a step repeats records."""
    made = of_the_step(Source(RECORDS[:3]), Reader(), samples=5)
    for index in range(3):
        for key, found in paths(made, index).items():
            assert sorted(found) == sorted({"/s0.png", "/s1.png", "/s2.png"} - {f"/{key}.png"})


def test_a_step_with_too_few_other_samples_is_an_error():
    with pytest.raises(UserError, match="plan/others") as error:
        of_the_step(Source(RECORDS), Reader(), samples=2).step(1)
    assert "1 other sample of step 2 of the stage, of which 2 are wanted" in error.value.problems[0].got


def test_a_bad_record_of_the_step_is_no_other_sample():
    source = Source(RECORDS)
    source[4] = torn()
    made = of_the_step(source, Reader(frozenset({"/s2.png"})), samples=12)
    step, _ = made.step_and_skipped(0)
    shown = {key for batch in step for _, key in batch.views}
    assert len(step[0].views_of("negatives") if len(step) == 1 else step) and not {"s2", "s4"} & shown
    for sample in RECORDS:
        if sample.key not in ("s2", "s4"):
            found = made.views.fitting(sample, 0, Counter(), made.other_samples("a", 0))
            assert not {"/s2.png", "/s4.png"} & {m.view.sample.images[0].path for m in found}


@pytest.mark.parametrize("task", [Negatives, OfTheStep])
@pytest.mark.parametrize("workers", [0, *(pytest.param(n, marks=pytest.mark.slow) for n in (1, 2))])
def test_other_samples_do_not_depend_on_ranks_workers_or_the_first_step(workers, task):
    made = negatives(Source(RECORDS), Reader(), samples=6)
    made = replace(made, views=replace(made.views, tasks=(task(name="negatives"),)))
    want = [_shown(step) for step in (made.step(i) for i in range(4))]
    for world in (1, 2):
        shares = [
            list(
                load_steps(
                    replace(made, rank=rank, world=world), 1, 4, workers=workers, worker_init=ignore_in_worker
                )
            )
            for rank in range(world)
        ]
        for i, step in enumerate(zip(*shares, strict=True), 1):
            assert sorted(x for share in step for x in _shown(share)) == sorted(want[i])


def _shown(step) -> list[tuple[str, str, float]]:
    """Returns key, view and the sum of the pixels of each view."""
    return [
        (key, name, round(float(batch.first_image(v).double().sum()), 3))
        for batch in step
        for v, (name, key) in enumerate(batch.views)
    ]
