"""A recomputed block runs twice, with the same gradients; switching it off restores it."""

import torch
from torch import nn

from lmmkit.model.transforms.recompute import set_recomputed


class Counted(nn.Linear):
    runs = 0

    def forward(self, x):
        self.runs += 1
        return super().forward(x).tanh()


def gradients(blocks) -> tuple[list[int], list[torch.Tensor]]:
    for block in blocks:
        block.runs = 0
    blocks.zero_grad()
    x = torch.linspace(-1, 1, 12).view(3, 4)
    for block in blocks:
        x = block(x)
    x.sum().backward()
    return [block.runs for block in blocks], [p.grad.clone() for p in blocks.parameters()]


def test_only_the_first_blocks_run_again_and_gradients_stay_equal():
    torch.manual_seed(0)
    blocks = nn.ModuleList(Counted(4, 4) for _ in range(3))
    runs, expected = gradients(blocks)
    assert runs == [1, 1, 1]
    for number, again in ((2, [2, 2, 1]), (3, [2, 2, 2]), (1, [2, 1, 1]), (0, [1, 1, 1])):
        set_recomputed(blocks, number)
        runs, found = gradients(blocks)
        assert runs == again
        assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))
