"""The data of a stage on this rank: its steps, and the log of its bad records."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

from lmmkit.api.batch import Batch, Step
from lmmkit.data.packing import Packer
from lmmkit.data.pipeline import Pipeline
from lmmkit.data.sources.bad_records import BadRecordLog
from lmmkit.errors import MachineError
from lmmkit.plan.prepare import Prepared
from lmmkit.recipe import Validate
from lmmkit.training.distributed.fsdp import encoder_is_sharded, sharded_teacher_models, sharded_teachers
from lmmkit.training.distributed.process_group import Ranks
from lmmkit.training.triggers import Position


@dataclass(frozen=True)
class StageData:
    """Makes the data of a stage for this rank."""

    prepared: Prepared
    stage: str
    ranks: Ranks

    @cached_property
    def pipeline(self) -> Pipeline:
        """Returns the pipeline of this rank's share of each step."""
        pipeline = self.prepared.pipeline(self.stage)
        packer = self.on_all_ranks(pipeline.packer)
        return replace(pipeline, packer=packer, rank=self.ranks.rank, world=self.ranks.world)

    def on_all_ranks(self, packer: Packer) -> Packer:
        """Returns the packer that gives batches without images a blank one if an encoder is sharded: such an
        encoder must run on all ranks or on none."""
        return replace(
            packer,
            blank=not self.ranks.alone and encoder_is_sharded(self.prepared.recipe),
            blank_teachers=sharded_teachers(self.prepared, self.stage, self.ranks)
            | sharded_teacher_models(self.prepared, self.stage, self.ranks),
        )

    @cached_property
    def steps(self) -> int:
        """Returns the number of optimizer steps in the stage."""
        return self.prepared.steps(self.stage)

    @property
    def validation(self) -> Validate | None:
        """Returns the stage's `validate` section."""
        return self.prepared.recipe.stages[self.stage].validate

    @cached_property
    def empty(self) -> Batch | None:
        """Returns the micro-batch that a rank runs while other ranks have micro-batches left."""
        return None if self.ranks.alone else self.pipeline.packer.pack([], {})[0]

    def bad_record_log(self, path: Path, at: Position) -> BadRecordLog:
        """Returns the log of the bad records that this stage skips, opened at `at`."""
        sources, weights = self.pipeline.sources, self.pipeline.order.weights
        log = BadRecordLog(
            path=path, stage=at.stage, before=at.step - at.stage_step, writes=self.ranks.first,
            policies={name: records.bad_records for name, records in sources.items()},
            per_step={name: self.pipeline.samples * w / sum(weights.values()) for name, w in weights.items()},
        )  # fmt: skip
        log.open(at.step, {name: records.known_bad for name, records in sources.items()})
        return log


def saving(batches: Iterator[Step], save: Callable[[], None]) -> Iterator[Step]:
    """Yields the steps. On a `MachineError` it calls `save` and raises the error again."""
    try:
        yield from batches
    except MachineError:
        save()
        raise
