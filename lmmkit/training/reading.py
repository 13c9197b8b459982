"""What a stage reads on this rank: its pipeline, features of pictures that are known, bad rows."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace

from lmmkit.batch import Step
from lmmkit.data.bad_rows import Ledger
from lmmkit.data.features import FeatureCache, digest
from lmmkit.data.pipeline import Pipeline
from lmmkit.errors import MachineError
from lmmkit.objective import Objective
from lmmkit.plan.prepare import Prepared
from lmmkit.rundir import RunDir
from lmmkit.training.due import Position
from lmmkit.training.ranks import ALONE, Ranks
from lmmkit.training.shard import sees_everywhere, whole


def stage_pipeline(prepared: Prepared, objective: Objective, stage: str, ranks: Ranks) -> Pipeline:
    """The stage's data as this rank reads it."""
    pipeline = prepared.pipeline(stage)
    features = feature_cache(prepared, objective, stage, ranks)
    blank = not ranks.alone and sees_everywhere(prepared.recipe)
    packer = replace(pipeline.packer, features=features, blank=blank)
    return replace(pipeline, packer=packer, rank=ranks.rank, world=ranks.world)


def feature_cache(
    prepared: Prepared, objective: Objective, stage: str, ranks: Ranks = ALONE
) -> FeatureCache | None:
    """Where features of pictures are kept, in a stage whose encoder stays as it is."""
    kept, recipe = prepared.recipe.speed.features, prepared.recipe
    if kept is None or recipe.stages[stage].train.vision is not None:
        return None
    # of one set of weights, encoders of another activation or number of heads say other things
    seen = f"{recipe.model.vision} {prepared.dims.image} {objective.compute}"
    held = {name: whole(tensor) for name, tensor in objective.lmm.vision.state_dict().items()}
    mark, limit, image = f"{digest(held)} {seen}", int(kept.gib * 2**30), prepared.dims.image
    return FeatureCache(recipe.path(kept.folder), mark, limit, (image.tokens, image.width), ranks.world)


def stage_ledger(pipeline: Pipeline, at: Position, run: RunDir, ranks: Ranks) -> Ledger:
    """The list of the rows this stage passes over."""
    weights = pipeline.order.weights
    ledger = Ledger(
        path=run.bad_rows, stage=at.stage, before=at.step - at.stage_step, writes=ranks.first,
        policies={name: records.bad_rows for name, records in pipeline.sources.items()},
        seen={name: pipeline.samples * w / sum(weights.values()) for name, w in weights.items()},
    )  # fmt: skip
    ledger.open(at.step, {name: records.rows.index.bad for name, records in pipeline.sources.items()})
    return ledger


def saving(batches: Iterator[Step], save: Callable[[], None]) -> Iterator[Step]:
    """The steps; before an error of the machine goes on its way, what was learned is saved."""
    try:
        yield from batches
    except MachineError:
        save()
        raise
