"""Other samples of a source: distinct, never the sample itself, a function of their key alone."""

from __future__ import annotations

import subprocess
import sys
from collections import Counter
from dataclasses import replace

import pytest

from lmmkit.api.sample import Sample
from lmmkit.data.sources.other_samples import NO_SOURCE, Others, SourceSamples
from lmmkit.errors import UserError

SAMPLES = [Sample(key=f"a:{i}", turns=()) for i in range(30)]
SOURCE = SourceSamples.among(SAMPLES)


def drawn(i: int = 0, n: int = 5, *, seed: int = 7, name: str = "task", epoch: int = 0) -> list[str]:
    return [sample.key for sample in Others(SOURCE, SAMPLES[i], seed, name, epoch)(n)]


def test_fewer_draws_begin_more_draws_in_any_order_of_calls():
    others = Others(SOURCE, SAMPLES[3], 7, "task", 0)
    five, two, all_ = others(5), others(2), others(29)
    assert five[:2] == two and all_[:5] == five and others(0) == []
    assert Others(SOURCE, SAMPLES[3], 7, "task", 0)(2) == two
    assert {sample.key for sample in all_} == {sample.key for sample in SAMPLES} - {"a:3"} and len(all_) == 29


def test_seed_instance_sample_and_epoch_are_the_key():
    assert len({tuple(drawn(i)) for i in range(30)}) == 30
    alike = [drawn(), drawn(seed=8), drawn(name="other"), drawn(epoch=1)]
    assert len(set(map(tuple, alike))) == 4 and drawn() == alike[0]


def test_every_other_sample_is_drawn_about_as_often():
    counts = Counter(key for seed in range(600) for key in drawn(n=2, seed=seed))
    assert set(counts) == {f"a:{i}" for i in range(1, 30)}
    assert min(counts.values()) > 20 and max(counts.values()) < 75, "41 on average"


def test_another_process_with_another_hash_seed_draws_the_same():
    code = (
        "from tests.data.sources.test_other_samples import drawn\n"
        "print([drawn(i) for i in reversed(range(30))][::-1])"
    )
    environment = {"PYTHONHASHSEED": "1", "PYTHONPATH": ":".join(sys.path)}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment)
    assert done.stdout.strip().splitlines()[-1] == str([drawn(i) for i in range(30)]), done.stderr


def test_samples_that_cannot_be_read_are_passed_over_and_tried_once():
    tried: list[int] = []

    def read(i: int) -> Sample | None:
        tried.append(i)
        return None if i % 3 == 0 else SAMPLES[i]

    found = [s.key for s in Others(SourceSamples("a", 30, read), SAMPLES[1], 7, "task", 0)(19)]
    assert found == [key for key in drawn(1, 29) if int(key[2:]) % 3]
    assert len(tried) == len(set(tried))


def test_samples_of_the_step_are_asked_for_by_kind():
    step = SourceSamples.among(SAMPLES[5:9], "step 1")
    both = replace(SOURCE, step=step)
    assert both.of("step") is step and both.of("source") is both and SOURCE.of("step") is SOURCE
    found = [sample.key for sample in Others(both.of("step"), SAMPLES[6], 7, "task", 0)(3)]
    assert sorted(found) == ["a:5", "a:7", "a:8"]


def test_too_few_and_impossible_numbers():
    with pytest.raises(UserError, match="plan/others") as error:
        drawn(n=30)
    assert "plugins.task" in error.value.problems[0].where
    with pytest.raises(UserError, match="plan/others"):
        Others(NO_SOURCE, SAMPLES[0], 7, "task", 0)(1)
    for wrong in (-1, 1.0, True, None):
        with pytest.raises(TypeError, match="a whole number"):
            Others(SOURCE, SAMPLES[0], 7, "task", 0)(wrong)  # type: ignore[arg-type]
