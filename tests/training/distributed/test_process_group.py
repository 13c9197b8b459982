"""What must agree before ranks train together, and what a stage may be called; without any ranks."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pytest
import torch

from lmmkit.data.sources import webdataset_shards
from lmmkit.errors import MachineError, UserError
from lmmkit.plan.prepare import prepare
from lmmkit.runs.run_folder import RunFolder
from lmmkit.training import run
from lmmkit.training.distributed import process_group
from lmmkit.training.validation import validate_problems
from tests.conftest import PLAIN


@dataclass(frozen=True)
class Second(process_group.Ranks):
    """Describes rank 1 of 2, which gets `from_first` from rank 0; None: the value that both have."""

    world: int = 2
    rank: int = 1
    from_first: Any = None

    def broadcast(self, value: Any = None) -> Any:
        return value if self.from_first is None else self.from_first


def test_another_recipe_than_the_first_rank_s_is_refused(tiny, tmp_path):
    with pytest.raises(UserError) as error:
        run._check_together(Second(from_first={"recipe": "x"}), RunFolder(tmp_path), prepare(tiny()))
    assert error.value.problems[0].code == "ranks/differ"


def test_a_folder_that_is_not_the_first_rank_s_is_refused(tiny, tmp_path):
    with pytest.raises(UserError) as error:
        run._check_together(Second(), RunFolder(tmp_path / "elsewhere"), prepare(tiny()))
    (problem,) = error.value.problems
    assert problem.code == "ranks/no-shared-folder" and "elsewhere" in problem.where


def test_more_local_ranks_than_devices_are_refused(monkeypatch):
    monkeypatch.setenv("LOCAL_RANK", "3")
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    with pytest.raises(MachineError) as error:
        process_group._device()
    (problem,) = error.value.problems
    assert problem.code == "ranks/too-few-devices" and "--nproc-per-node 2" in problem.hint


def test_a_stage_may_not_have_the_name_of_another_s_best_weights(tiny):
    text = PLAIN.replace("  pretrain:", "  finetune-best:")
    recipe = tiny("stages.finetune.validate={every: 1, data: heldout, best: loss}", text=text)
    assert [p.code for p in validate_problems(prepare(recipe))] == ["validate/stage-name"]


def test_a_package_that_is_not_there_is_named_with_how_to_get_it():
    with pytest.raises(MachineError) as error:
        webdataset_shards._package("webdataset_absent")
    (problem,) = error.value.problems
    assert problem.code == "records/no-webdataset" and "lmmkit[webdataset]" in problem.hint
