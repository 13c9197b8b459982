"""The commands that a grid runs, as work of a queue: one `train` for each stage, one `eval` for each run."""

from __future__ import annotations

import os
import time
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

from lmmkit.ablation.forecast import eval_name, train_name
from lmmkit.ablation.planned_runs import GridRun, StageRun, unique_stages
from lmmkit.ablation.store import Store
from lmmkit.commands.experiments.job_queue import Took
from lmmkit.commands.support.jobs import Job
from lmmkit.errors import Tried, raise_together
from lmmkit.runs.metrics import last_step


@dataclass
class _GridCommand(ABC):
    """Is one command of a grid; it works under the lock of its key. `took` is known when the command has ended."""

    store: Store
    trust_files: bool = field(default=False, kw_only=True)
    took: Took = field(default_factory=Took, init=False)
    _began: float = field(default=0.0, init=False)

    @property
    @abstractmethod
    def key(self) -> str:
        """Returns the key whose lock the command keeps."""

    @abstractmethod
    def is_done(self) -> bool:
        """Returns whether nothing is left to do."""

    @abstractmethod
    def job(self, handle: int) -> Job:
        """Prepares the command, which inherits the lock; returns its job."""

    def begin(self) -> Job | Literal["done", "busy"]:
        """Starts the command, unless nothing is left to do or another process does it."""
        if self.is_done():
            return "done"
        handle = self.store.claim(self.key)
        if handle is None:
            return "busy"
        try:
            if self.is_done():  # by the process that had the lock
                return "done"
            job = self.job(handle)
            self._began = time.monotonic()
            job.start()
            return job
        finally:
            os.close(handle)

    def end(self, job: Job) -> None:
        """Keeps what the command took."""
        used = job.process.usage if job.process is not None else None
        cpu = used.ru_utime + used.ru_stime if used is not None else 0.0
        self.took = Took(cpu_seconds=cpu, wall_seconds=time.monotonic() - self._began)


@dataclass
class TrainStage(_GridCommand):
    """Trains one stage."""

    stage: StageRun

    @property
    def key(self) -> str:
        """Returns the key of the stage."""
        return self.stage.key

    def is_done(self) -> bool:
        """Returns whether the stage is trained."""
        return self.store.is_trained(self.stage)

    @property
    def name(self) -> str:
        """Returns the name of the command."""
        return train_name(self.stage.key)

    @property
    def after(self) -> Sequence[str]:
        """Returns the name of the command that trains the stage before."""
        return [] if self.stage.before is None else [train_name(self.stage.before.key)]

    def words(self) -> list[str]:
        """Writes the recipe; returns the words of the command. Where it continues, other data mean other paths, such as
        those of a store that was moved, or other questions: the data that it learns from are in the key."""
        folder = self.store.run(self.stage.key).path
        begun = (folder / "run.json").exists() or (folder / "lock").exists()
        return [
            "train", str(self.store.write_recipe(self.stage)), "--root", self.stage.recipe.root,
            "--out", str(folder), "--stage", self.stage.stage,
            *["--resume", "--accept-data-change"] * begun, *["--trust-files"] * self.trust_files,
        ]  # fmt: skip

    def done_steps(self) -> int:
        """Returns how many steps of the stage are logged."""
        return max(0, last_step(self.store.run(self.stage.key).metrics) - self.stage.steps_before)

    def _share(self, behind: int) -> float:
        """Returns the share that is done of what was left when `behind` steps were done."""
        done = self.done_steps() - behind  # below 0 where a resume repeats steps after its checkpoint
        return min(1.0, max(0, done) / max(1, self.stage.steps - behind))

    def job(self, handle: int) -> Job:
        """Writes the recipe; returns the job that trains."""
        behind = self.done_steps()
        return Job(self.name, self.words(), self.store.logs, lambda: self._share(behind), handles=(handle,))


@dataclass
class EvaluateRun(_GridCommand):
    """Evaluates the tasks of a run that are not evaluated yet."""

    run: GridRun

    @property
    def key(self) -> str:
        """Returns the key of the run."""
        return self.run.key

    def is_done(self) -> bool:
        """Returns whether all tasks are evaluated."""
        return not self.store.missing_tasks(self.run)

    @property
    def name(self) -> str:
        """Returns the name of the command."""
        return eval_name(self.run.key)

    @property
    def after(self) -> Sequence[str]:
        """Returns the names of the commands that train its stages: the models of all are linked."""
        return [train_name(stage.key) for stage in self.run.stages]

    def words(self) -> list[str]:
        """Returns the words of the command."""
        tasks = ",".join(self.store.missing_tasks(self.run))
        return [
            "eval", str(self.store.run(self.run.key).path), "--on", tasks, "--root", self.run.root,
            *["--trust-files"] * self.trust_files,
        ]  # fmt: skip

    def job(self, handle: int) -> Job:
        """Makes the folder like that of one run of all stages; returns the job that evaluates."""
        self.store.prepare_evaluation(self.run)
        return Job(self.name, self.words(), self.store.logs, handles=(handle,))

    def end(self, job: Job) -> None:
        """Keeps what the command took, and notes which questions are answered if it has ended well."""
        super().end(job)
        if not job.running and not job.failed:
            self.store.note_evaluated(self.run)


def work_of(
    store: Store, runs: Sequence[GridRun], *, trust_files: bool = False
) -> list[TrainStage | EvaluateRun]:
    """Returns the work of a grid. The runs of one seed come before those of the next, so that a grid which is stopped
    has whole pairs."""
    found: dict[str, TrainStage | EvaluateRun] = {}
    for run in runs:
        for stage in run.stages:
            train = TrainStage(store, stage, trust_files=trust_files)
            found.setdefault(train.name, train)
        evaluation = EvaluateRun(store, run, trust_files=trust_files)
        found.setdefault(evaluation.name, evaluation)
    return list(found.values())


def left_over(store: Store, runs: Sequence[GridRun]) -> list[str]:
    """Returns the names of the commands that are not done. Raises `UserError` with all tasks that were evaluated with
    other questions or settings."""
    trains = [train_name(key) for key, stage in unique_stages(runs).items() if not store.is_trained(stage)]
    missing = [Tried(lambda run=run: store.missing_tasks(run)) for run in runs]
    raise_together(missing)
    return [
        *trains,
        *dict.fromkeys(eval_name(run.key) for run, each in zip(runs, missing, strict=True) if each.value),
    ]


def steps_behind(store: Store, runs: Sequence[GridRun]) -> dict[str, int]:
    """Returns the steps that unfinished stages have behind them, by key."""
    stages = unique_stages(runs)
    return {
        key: TrainStage(store, stage).done_steps()
        for key, stage in stages.items()
        if not store.is_trained(stage) and store.run(key).is_run
    }
