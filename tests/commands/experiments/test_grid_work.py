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


def test_a_stage_that_repeats_steps_after_its_checkpoint_is_at_0(tmp_path):
    stage = TrainStage(Store(tmp_path), STAGE)
    metrics = stage.store.run("key").metrics
    metrics.parent.mkdir(parents=True)
    for step, share in ((2, 0.0), (4, 0.0), (5, 0.5), (6, 1.0)):
        metrics.write_text(f'{{"step": {step}}}\n')
        assert stage._share(behind=4) == share


def test_a_stage_that_continues_may_have_its_model_at_another_path(tmp_path):
    stage = TrainStage(Store(tmp_path), STAGE)
    assert "--resume" not in stage.words()
    stage.store.run("key").path.mkdir(parents=True)
    stage.store.run("key").run_json.write_text("{}")
    assert stage.words()[-2:] == ["--resume", "--accept-data-change"]
