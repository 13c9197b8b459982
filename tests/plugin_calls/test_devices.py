"""A computation that a GPU would refuse is found on a CPU, and one that it would not refuse is not."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from lmmkit.plugin_calls.devices import AsOnDevice, WrongDevice

HOST = torch.ones(4)  # as a plugin's file makes one when it is loaded


def draw(x):
    return torch.randn(x.shape, generator=torch.Generator().manual_seed(1))


SOUND = {
    "to a tensor": lambda x, t, head: x * torch.linspace(0, 1, 4).to(x),
    "to a device": lambda x, t, head: x * torch.ones(4).to(x.device, torch.float32),
    "device by name": lambda x, t, head: torch.ones(3, 4).to(device=x.device) + x,
    "made there": lambda x, t, head: x * torch.linspace(0, 1, 4, device=x.device),
    "from numbers": lambda x, t, head: x * torch.as_tensor([1.0, 2, 3, 4], device=x.device),
    "new": lambda x, t, head: x + x.new_ones(4) + torch.zeros_like(x),
    "type_as": lambda x, t, head: x + torch.ones(3, 4).type_as(x),
    "drawn, then moved": lambda x, t, head: x + draw(x).to(x.device),
    "an index of the host": lambda x, t, head: x[torch.arange(2)],
    "a number of the host": lambda x, t, head: x * torch.tensor(2.0),
    "a module": lambda x, t, head: F.cross_entropy(head(x), t),
    "both on the host": lambda x, t, head: x.cpu() * torch.ones(4),
    "written into": lambda x, t, head: torch.zeros_like(x).copy_(torch.ones(3, 4)),
    "numpy of the host": lambda x, t, head: np.asarray(torch.ones(3)).sum() + x,
}
FAULTY = {
    "made without a device": lambda x, t, head: x * torch.linspace(0, 1, 4),
    "targets": lambda x, t, head: F.cross_entropy(head(x), torch.tensor([0, 1, 0])),
    "put together": lambda x, t, head: torch.cat([x, torch.zeros(1, 4)]),
    "named": lambda x, t, head: x * torch.ones(4, device="cpu"),
    "moved away": lambda x, t, head: x.to("cpu") + x,
    "drawn, not moved": lambda x, t, head: x + draw(x),
    "a generator of the host": lambda x, t, head: x.clone().normal_(generator=torch.Generator()),
    "the same with a device": lambda x, t, head: torch.rand(2, device=x.device, generator=torch.Generator()),
    "numpy": lambda x, t, head: x.numpy(),
    "numpy's function": lambda x, t, head: np.mean(np.asarray(x)),
    "made when loaded": lambda x, t, head: x * HOST,
}


def run(call):
    given = torch.randn(3, 4), torch.tensor([1, 0, 1]), nn.Linear(4, 2)
    with torch.no_grad(), AsOnDevice([HOST]):
        call(*given)


@pytest.mark.parametrize("name", SOUND)
def test_what_a_gpu_computes_is_no_fault(name):
    run(SOUND[name])


@pytest.mark.parametrize("name", FAULTY)
def test_what_a_gpu_refuses_is_a_fault(name):
    with pytest.raises(WrongDevice):
        run(FAULTY[name])


@pytest.mark.parametrize(("calls", "fault"), [*((c, False) for c in SOUND), *((c, True) for c in FAULTY)])
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_gpu_agrees(calls, fault):
    """Runs the same calls with the same tensors on a GPU."""
    head = nn.Linear(4, 2).cuda()
    given = torch.randn(3, 4, device="cuda"), torch.tensor([1, 0, 1], device="cuda"), head
    try:
        with torch.no_grad():
            (FAULTY if fault else SOUND)[calls](*given)
        refused = False
    except (RuntimeError, TypeError):
        refused = True
    assert refused == fault
