"""The context of a run: its logs at a start and at a resume, on the first rank only; the request to stop."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from lmmkit.plan.prepare import prepare
from lmmkit.runs.files import read_jsonl
from lmmkit.runs.run_folder import RunFolder
from lmmkit.training.distributed.process_group import ALONE, Ranks
from lmmkit.training.monitoring.metrics_log import MetricsLog
from lmmkit.training.monitoring.null_logger import NullLogger
from lmmkit.training.run_context import RunContext
from lmmkit.training.signals import Interrupted, Stop
from tests.conftest import PLAIN


@pytest.fixture
def context(tiny, tmp_path) -> RunContext:
    return RunContext(
        prepared=prepare(tiny(text=PLAIN)), run=RunFolder(tmp_path), ranks=ALONE, device=torch.device("cpu"),
        stop=Stop(),
    )  # fmt: skip


class Second(Ranks):
    """Describes rank 1 of 2; the other rank has received signal 15."""

    def all_reduce_max(self, value: int) -> int:
        return max(value, 15)


def test_a_record_reaches_metrics_and_tensorboard(context):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    with context.logging(0, resume=False) as logging:
        logging.log({"step": 1, "stage": "pretrain", "loss": 2.5, "tokens": 7})
    assert read_jsonl(context.run.metrics) == [{"step": 1, "stage": "pretrain", "loss": 2.5, "tokens": 7}]
    board = EventAccumulator(str(context.run.tb))
    board.Reload()
    assert board.Tags()["scalars"] == ["stage", "loss"], "only floats are figures"


def test_a_resume_removes_the_records_of_steps_that_run_again(context):
    run = context.run
    for path in (run.metrics, run.anomalies):
        with MetricsLog(path) as log:
            for step in (1, 2, 3):
                log.write({"step": step})
    with context.logging(2, resume=True):
        pass
    assert [line["step"] for line in read_jsonl(run.metrics)] == [1, 2]
    assert [line["step"] for line in read_jsonl(run.anomalies)] == [1, 2]


def test_other_ranks_than_the_first_log_nothing(context):
    other = replace(context, ranks=Second(world=2, rank=1))
    with other.logging(0, resume=False) as logging:
        assert isinstance(logging.metrics, NullLogger) and isinstance(logging.board, NullLogger)
        logging.log({"step": 1, "stage": "pretrain", "loss": 2.5})
    assert not list(context.run.path.iterdir())


def test_a_signal_of_one_rank_stops_all(context):
    assert not context.stop_requested()
    context.poll()
    other = replace(context, ranks=Second(world=2, rank=1), stop=Stop())
    with pytest.raises(Interrupted):
        other.poll()
    assert other.stop.requested == 15 and other.stop_requested()
    assert context.stop.requested is None
