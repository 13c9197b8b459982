"""The commands of a grid beside another process that does the same."""

from __future__ import annotations

from dataclasses import dataclass, replace

import pytest

from lmmkit.ablation.planned_runs import GridRun
from lmmkit.ablation.store import Store
from lmmkit.commands.experiments.grid_work import EvaluateRun, TrainStage, left_over
from lmmkit.errors import UserError
from tests.support.grids import stage_run

STAGE = stage_run("key")
RUN = GridRun(arm="a", equal="steps", seed=1, root=".", branch=0, stages=(STAGE,), questions={"answers": "q"})


@dataclass(frozen=True)
class SlowStore(Store):
    """Is a store in which another process ends its work before this one has the lock."""

    def claim(self, key: str) -> int | None:
        """Locks a key, after the other process."""
        folder = self.run(key)
        self.model(STAGE).mkdir(parents=True)
        (self.model(STAGE) / "config.json").write_text("{}")
        folder.run_json.write_text("{}")
        folder.results.write_text('{"answers": {}}')
        self.note_evaluated(RUN)
        return super().claim(key)


@pytest.mark.parametrize("make", [lambda s: TrainStage(s, STAGE), lambda s: EvaluateRun(s, RUN)])
def test_what_another_process_has_done_until_the_lock_is_free_is_done(make, tmp_path):
    store = SlowStore(tmp_path)
    assert make(store).begin() == "done" and not store.logs.exists()
    assert not Store(tmp_path).is_busy("key")


@pytest.mark.parametrize("make", [lambda s: TrainStage(s, STAGE), lambda s: EvaluateRun(s, RUN)])
def test_what_another_process_works_on_is_busy(make, tmp_path):
    store = Store(tmp_path)
    assert store.claim("key") is not None and make(store).begin() == "busy"


def test_all_runs_that_have_answered_other_questions_are_named(tmp_path):
    store, runs = Store(tmp_path), [replace(RUN, stages=(stage_run(key),)) for key in ("one", "two", "three")]
    for run in runs[1:]:
        store.note_evaluated(run)
    names = [f"{key} {kind}" for key in ("one", "two", "three") for kind in ("train", "eval")]
    assert sorted(left_over(store, runs)) == sorted(names), "an evaluation without results is not done"
    with pytest.raises(UserError) as error:
        left_over(store, [replace(run, questions={"answers": "changed"}) for run in runs])
    assert [p.code for p in error.value.problems] == 2 * ["ablation/other-questions"]
    assert [p.where for p in error.value.problems] == [
        f"{tmp_path}/runs/{key}: answers" for key in ("two", "three")
    ]


def test_steps_that_a_resume_repeats_are_no_progress_below_zero(tmp_path):
    work = TrainStage(Store(tmp_path), replace(STAGE, steps=10))
    metrics = work.store.run("key").metrics
    metrics.parent.mkdir(parents=True)
    before = sum(stage.length.steps for stage in list(STAGE.recipe.stages.values())[:-1])

    def log(steps):
        metrics.write_text("".join(f'{{"step": {step}}}\n' for step in range(1, before + steps + 1)))

    log(6)
    job = work.job(0)
    log(4)  # a resume cuts the log at its checkpoint
    assert job.share() == 0
    log(8)
    assert job.share() == 0.5
