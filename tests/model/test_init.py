"""Draws of values: none where there are no values, and none that loads torch's compiler."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch
from torch import nn

from lmmkit.model.init import NoDraws

DRAWS = [
    nn.init.normal_,
    nn.init.uniform_,
    nn.init.trunc_normal_,
    nn.init.kaiming_uniform_,
    nn.init.xavier_normal_,
]
LOAD = """
import sys
from lmmkit.demo.demo_run import DEMO_MODEL
from lmmkit.inference.load import load
load(DEMO_MODEL)
import lmmkit.training.run
slow = ("torch._dynamo", "xformers", "torch.distributed.fsdp", "torch.distributed.tensor")
print([name for name in slow if name in sys.modules])
"""


@pytest.mark.parametrize("draw", DRAWS, ids=lambda draw: draw.__name__)
def test_a_tensor_without_values_is_given_back_and_one_with_values_is_drawn(draw):
    with torch.device("meta"), NoDraws():
        tensor = torch.empty(3, 4)
        assert draw(tensor) is tensor
        real = draw(torch.zeros(3, 4, device="cpu"))
    assert tensor.is_meta and real.count_nonzero() > 0


def test_a_model_is_loaded_without_torch_s_compiler_and_xformers_on_a_cpu():
    """Looks for what shards over several ranks too, also where a training is imported."""
    if torch.cuda.is_available():
        pytest.skip("a card asks for xformers")
    done = subprocess.run([sys.executable, "-c", LOAD], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"
