"""What several ranks skip, validate, keep and leave: all of them, on what one of them saw."""

from __future__ import annotations

import os
import signal

import pytest

from lmmkit.errors import Problem
from lmmkit.evaluate import run as evaluation
from lmmkit.inference.chat_model import ChatModel
from lmmkit.objective import Objective
from lmmkit.runs.files import read_json, read_jsonl
from lmmkit.runs.run_folder import RunFolder
from lmmkit.training import stage_loop
from lmmkit.training.checkpoint import read
from lmmkit.training.distributed.fsdp import local_rows
from lmmkit.training.distributed.process_group import joined
from lmmkit.training.run import train
from lmmkit.training.step import run_step
from tests.conftest import PLAIN
from tests.support import local_ranks
from tests.support.killed_runs import figures
from tests.training.test_step import of_mostly_long

SHORT = (
    "stages.pretrain.length.steps=3", "stages.finetune.length.steps=1", "output.images_every=0", "output.save_every=0",
)  # fmt: skip
VALIDATED = (
    "evaluate.tasks.answers={kind: questions, data: heldout, samples: 3, max_new_tokens: 3}",
    "stages.pretrain.validate={every: 2, data: heldout, samples: 3, tasks: [answers], best: loss}",
)


def bits(objective, optimizer) -> dict[str, bytes]:
    held = {f"{i}.{k}": v for i, s in enumerate(optimizer.state.values()) for k, v in s.items()}
    named = dict(objective.named_parameters()) | held
    return {name: local_rows(tensor.detach())[0].clone().numpy().tobytes() for name, tensor in named.items()}


def spoil(bad, by: int, rank: int) -> None:
    """Rank `by` has a NaN in its loss at the steps `bad`; every rank's bits stay as they were, or it fails."""
    steps = iter(range(1, 1000))
    forward = Objective.forward

    def nan(self, batch, *now):
        outcome = forward(self, batch, *now)
        return outcome._replace(sums={name: value * float("nan") for name, value in outcome.sums.items()})

    def spoilt(objective, optimizer, *args, **kwargs):
        number = next(steps)
        before = bits(objective, optimizer)
        Objective.forward = nan if number in bad and rank == by else forward
        report = run_step(objective, optimizer, *args, **kwargs)
        Objective.forward = forward
        assert (bits(objective, optimizer) == before) is (number in bad), number
        return report

    stage_loop.run_step = spoilt


def test_a_nan_on_one_rank_skips_the_update_on_all(tiny, tmp_path):
    # a constant rate: where it is 0 no update changes a bit
    recipe = tiny(*SHORT, "stages.pretrain.optim.warmup=0", "stages.finetune.optim.warmup=0", text=PLAIN)

    def body(rank):
        spoil({2}, 1, rank)
        train(recipe, out=tmp_path / "run")

    local_ranks.run(2, body, tmp_path)
    run = RunFolder(tmp_path / "run")
    (line,) = read_jsonl(run.anomalies)
    assert line["step"] == 2 and line["kind"] == "not-finite" and len(line["records"]["captions"]) == 4
    assert [x["loss"] is None for x in run.read_metrics()] == [False, True, False, False]


def test_a_step_is_empty_only_if_it_is_on_all_ranks(scenes, tiny, tmp_path):
    recipe = tiny(
        of_mostly_long(scenes, tmp_path), "stages.pretrain.length.steps=1", "stages.finetune.length.steps=9",
        "stages.finetune.batch={samples: 2, too_long: drop}", "stages.finetune.optim.weight_decay=0.5", text=PLAIN,
    )  # fmt: skip
    local_ranks.run(2, lambda rank: train(recipe, out=tmp_path / "run") and None, tmp_path)
    one = train(recipe, out=tmp_path / "one")
    mine, theirs = RunFolder(tmp_path / "run").read_metrics(), one.run.read_metrics()
    empty = [line["loss"] is None for line in mine]
    assert empty == [line["loss"] is None for line in theirs] and 0 < sum(empty) < 9
    for a, b in zip(mine, theirs, strict=True):
        assert {k: v for k, v in a.items() if "dropped" in k} == {
            k: v for k, v in b.items() if "dropped" in k
        }
        assert a["loss"] == (b["loss"] if b["loss"] is None else pytest.approx(b["loss"], rel=1e-5))


@pytest.mark.slow
def test_three_in_a_row_on_one_rank_end_all_with_a_checkpoint(tiny, tmp_path):
    recipe = tiny(*SHORT, "stages.pretrain.optim.warmup=0", text=PLAIN)

    def body(rank):
        spoil({1, 2, 3}, 1, rank)
        train(recipe, out=tmp_path / "run")

    assert local_ranks.wait(local_ranks.start(2, body, tmp_path)) == [2, 2]
    assert "train/not-finite" in local_ranks.output_of(tmp_path, 0) + local_ranks.output_of(tmp_path, 1)
    assert read.step_of(read.newest(RunFolder(tmp_path / "run")).path) == 3


@pytest.mark.slow
def test_validation_on_two_ranks_says_what_one_process_says_and_touches_nothing(tiny, tmp_path):
    plain, asked = tiny(*SHORT, text=PLAIN), tiny(*SHORT, *VALIDATED, text=PLAIN)
    for name, recipe in (("plain", plain), ("asked", asked)):
        local_ranks.run(
            2, lambda rank, n=name, r=recipe: train(r, out=tmp_path / n / "run") and None, tmp_path / name
        )
    one = train(asked, out=tmp_path / "one").run
    two, without = (RunFolder(tmp_path / name / "run") for name in ("asked", "plain"))
    assert [line for line in figures(two) if "loss" in line] == figures(without)
    mine, theirs = ([line for line in figures(run) if "val/loss" in line] for run in (two, one))
    assert [line["step"] for line in mine] == [2, 3]
    for a, b in zip(mine, theirs, strict=True):
        assert a.keys() == b.keys()
        assert [a[k] for k in a if k != "stage"] == pytest.approx([b[k] for k in a if k != "stage"], rel=1e-5)
    configs = [read_json(run.best("pretrain") / "config.json") for run in (two, one)]
    assert configs[0]["step"] == configs[1]["step"]


@pytest.mark.slow
def test_a_stop_on_one_rank_in_the_middle_of_a_validation_stops_all(tiny, tmp_path):
    recipe = tiny(*SHORT, *VALIDATED, text=PLAIN)
    of = ChatModel.of.__func__

    def body(rank):
        calls = []

        def polled(cls, *args, poll, **kwargs):
            def check():
                calls.append(1)
                if len(calls) == 2 and rank == 1:
                    os.kill(os.getpid(), signal.SIGTERM)
                poll()

            return of(cls, *args, poll=check, **kwargs)

        ChatModel.of = classmethod(polled)
        finished = train(recipe, out=tmp_path / "run")
        assert finished.signal == signal.SIGTERM and len(calls) <= 3

    local_ranks.run(2, body, tmp_path)
    run = RunFolder(tmp_path / "run")
    assert read.step_of(read.newest(run).path) == 2
    assert not any("val/loss" in line for line in figures(run))


def test_what_one_rank_cannot_read_none_validates_on(tiny, tmp_path):
    recipe = tiny(*SHORT, *VALIDATED, "data.heldout.bad_records=skip", text=PLAIN)
    read = evaluation._unreadable

    def body(rank):
        def faulty(records, i, reader):
            wrong = Problem("image/file", "here", "Input/output error", "an image file", "Repair it.")
            return [wrong] if rank == 1 and i == 1 else read(records, i, reader)

        evaluation._unreadable = faulty
        train(recipe, out=tmp_path / "run")

    local_ranks.run(2, body, tmp_path)
    assert [line["step"] for line in figures(RunFolder(tmp_path / "run")) if "val/loss" in line] == [2, 3]
    assert "passed over here: Input/output error" in local_ranks.output_of(tmp_path, 0)


def test_too_little_memory_on_one_rank_is_named_once_and_ends_all_with_3(tmp_path):
    def body(rank: int) -> None:
        with joined():
            if rank == 1:
                bytearray(2**50)

    assert local_ranks.wait(local_ranks.start(2, body, tmp_path)) == [3, 3]
    outputs = [local_ranks.output_of(tmp_path, rank) for rank in range(2)]
    assert "rank 1 of 2" in outputs[1] and "machine/out-of-memory" in outputs[1], outputs
    assert not any("Traceback" in output for output in outputs), outputs
