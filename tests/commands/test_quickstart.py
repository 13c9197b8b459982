"""The parts of a quickstart that are found in its folder."""

from __future__ import annotations

import pytest

from lmmkit.commands.quickstart import Quickstart


@pytest.fixture
def work(tmp_path):
    found = Quickstart(tmp_path / "q", fast=True)
    assert found.open() == 0.0
    return found


def test_what_is_left_follows_from_the_files(work):
    def left():
        jobs = [job for _, jobs in work.phases() for job in jobs]
        return [job.name for job in (*jobs, *(job.then for job in jobs if job.then))]

    def touch(*parts, text="{}"):
        path = work.to.joinpath(*parts)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)

    assert left() == ["data", "llava", "direct", "eval llava", "eval direct"]
    touch("scenes", "tokenizer.model")
    assert "data" in left(), "a part of the data is no data"
    touch("scenes", "README.md")
    touch("llava", "run.json")
    touch("llava", "metrics.jsonl", text='{"step": 7}\n')
    assert left() == ["llava", "direct", "eval llava", "eval direct"]
    jobs = work.phases()[1][1]
    assert "--resume" in jobs[0].arguments and "--resume" not in jobs[1].arguments
    assert jobs[0].share() == 7 / 14 and "llava at step 7 of 14" in work.state()
    touch("llava", "model", "pretrain", "config.json")
    assert "llava" in left()
    touch("llava", "model", "finetune", "config.json")
    touch("llava", "results.json", text='{"answers": {}}')
    assert left() == ["direct", "eval llava", "eval direct"]
    (evaluation,) = work.phases()[2][1]
    assert evaluation.name == "eval llava", "that of direct follows its training"
    assert evaluation.share() == 0.0
    touch("logs", "eval-llava.progress", text="0.4000")
    assert evaluation.share() == 0.4, "the command reports how far it is"
    touch("llava", "results.json", text='{"answers": {}, "terms": {}}')
    assert left() == ["direct", "eval direct"]


def test_the_time_of_earlier_parts_counts(work):
    work.save(61.5)
    assert Quickstart(work.to, fast=True).open() == 61.5
