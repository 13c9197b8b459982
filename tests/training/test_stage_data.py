"""The data of a stage on one rank: shares, blank images, the empty micro-batch, the bad-record log."""

from __future__ import annotations

import math

import pytest

from lmmkit.plan.prepare import prepare
from lmmkit.training.distributed.process_group import ALONE, Ranks
from lmmkit.training.stage_data import StageData
from lmmkit.training.triggers import Position
from tests.conftest import PLAIN

FROZEN = ("stages.pretrain.train={connector: {}, text: {}}",)


@pytest.fixture(scope="module")
def prepared(scenes):
    from lmmkit.recipe import read_text

    return [prepare(read_text(PLAIN, overrides=more, root=scenes)) for more in ((), FROZEN)]


def test_the_ranks_share_each_step(prepared):
    whole = StageData(prepared[0], "finetune", ALONE)
    shares = [StageData(prepared[0], "finetune", Ranks(world=3, rank=rank)) for rank in range(3)]
    assert {data.steps for data in (whole, *shares)} == {6}
    for index in range(6):
        parts = [data.pipeline.positions(index) for data in shares]
        assert sorted(k for part in parts for k in part) == list(whole.pipeline.positions(index))
        assert all(list(part) == sorted(part) for part in parts)


def test_steps_count_the_short_last_batch(scenes):
    from lmmkit.recipe import read_text

    recipe = read_text(
        PLAIN,
        overrides=["stages.finetune.length={epochs: 1}", "stages.finetune.batch.samples=7"],
        root=scenes,
    )
    data = StageData(prepare(recipe), "finetune", ALONE)
    assert data.steps == math.ceil(data.pipeline.total / 7) and data.pipeline.total == 120


def test_only_ranks_with_a_sharded_encoder_add_a_blank_image(prepared):
    two = Ranks(world=2, rank=1)
    for stage in ("pretrain", "finetune"):
        assert StageData(prepared[0], stage, two).pipeline.packer.blank, "one stage trains the encoder"
        assert not StageData(prepared[0], stage, ALONE).pipeline.packer.blank
        assert not StageData(prepared[1], stage, two).pipeline.packer.blank
    batch = StageData(prepared[0], "finetune", two).empty
    assert batch is not None and len(batch) == 0 and len(batch.pixels_ICXY) == 1
    assert StageData(prepared[0], "finetune", ALONE).empty is None


def test_the_bad_record_log_knows_the_stage_and_its_sources(prepared, tmp_path):
    data = StageData(prepared[0], "finetune", Ranks(world=2, rank=1))
    log = data.bad_record_log(tmp_path / "bad_records.jsonl", Position("finetune", 9, 3))
    assert (log.stage, log.before, log.writes) == ("finetune", 6, False)
    assert log.per_step == {"questions": 4.0} and log.policies["questions"].kind == "error"
    assert not (tmp_path / "bad_records.jsonl").exists()


def test_the_validate_section_is_that_of_the_stage(scenes):
    from lmmkit.recipe import read_text

    asked = "stages.finetune.validate={every: 2, data: heldout}"
    prepared = prepare(read_text(PLAIN, overrides=[asked], root=scenes))
    section = StageData(prepared, "finetune", ALONE).validation
    assert section is not None and section.every == 2
    assert StageData(prepared, "pretrain", ALONE).validation is None
