"""The data of a stage on this rank: its pipeline and its bad records."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace

from lmmkit.api.batch import Step
from lmmkit.data.pipeline import Pipeline
from lmmkit.data.sources.bad_records import BadRecordLog
from lmmkit.errors import MachineError
from lmmkit.plan.prepare import Prepared
from lmmkit.runs.run_folder import RunFolder
from lmmkit.training.distributed.fsdp import sees_everywhere
from lmmkit.training.distributed.process_group import Ranks
from lmmkit.training.triggers import Position


def stage_pipeline(prepared: Prepared, stage: str, ranks: Ranks) -> Pipeline:
    """Returns the stage's pipeline for this rank."""
    pipeline = prepared.pipeline(stage)
    packer = replace(pipeline.packer, blank=not ranks.alone and sees_everywhere(prepared.recipe))
    return replace(pipeline, packer=packer, rank=ranks.rank, world=ranks.world)


def stage_ledger(pipeline: Pipeline, at: Position, run: RunFolder, ranks: Ranks) -> BadRecordLog:
    """Returns the log of the bad records that this stage skips, opened at `at`."""
    weights = pipeline.order.weights
    ledger = BadRecordLog(
        path=run.bad_records, stage=at.stage, before=at.step - at.stage_step, writes=ranks.first,
        policies={name: records.bad_records for name, records in pipeline.sources.items()},
        seen={name: pipeline.samples * w / sum(weights.values()) for name, w in weights.items()},
    )  # fmt: skip
    ledger.open(at.step, {name: records.known_bad for name, records in pipeline.sources.items()})
    return ledger


def saving(batches: Iterator[Step], save: Callable[[], None]) -> Iterator[Step]:
    """Yields the steps. On a `MachineError` it calls `save` and raises the error again."""
    try:
        yield from batches
    except MachineError:
        save()
        raise
