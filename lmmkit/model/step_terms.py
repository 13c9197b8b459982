"""Terms over all items of a step: their rows are collected first, and differentiated in a second pass.

In the first pass each micro-batch gives its items without a graph. Every rank gets the items of all ranks, and
computes the value of the step and its gradient d with respect to each item. In the second pass, the ordinary
one, a micro-batch adds sum(d * items). Its gradient is that of the value, by the chain rule.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from lmmkit import plugin_calls
from lmmkit.api.components import StepTerm
from lmmkit.api.ctx import Ctx

GatherRows = Callable[[Tensor | None], tuple[Tensor | None, int]]
"""Returns the rows of all ranks, and the index of this rank's first one; None where no rank has any."""


class StepShare(NamedTuple):
    """Holds what one micro-batch adds to a term over the step.

    `d_items` is the gradient of the step's value for its items, [n, ...]. `value` is its share of that value.
    `d_parameters` has gradients for parameters of the term's module, by name.
    """

    d_items: Tensor
    value: Tensor
    d_parameters: Mapping[str, Tensor]

    def sum(self, term: StepTerm, ctx: Ctx) -> Tensor:
        """Returns a scalar of value `value` with the gradient of the step's value."""
        linear = self.value.new_zeros(())
        if ctx.batch.count[term.name]:
            linear = linear + (self.d_items * plugin_calls.embed(term, ctx)).sum()
        for name, d in self.d_parameters.items():
            assert ctx.module is not None, "its parameters are in `d_parameters`"
            linear = linear + (d * ctx.module.get_parameter(name)).sum()
        return self.value + linear - linear.detach()


def items_of(term: StepTerm, ctx: Ctx) -> Tensor | None:
    """Returns the items of a micro-batch, None if it has none."""
    return plugin_calls.embed(term, ctx).detach() if ctx.batch.count[term.name] else None


def all_items(items: Sequence[Tensor | None]) -> Tensor | None:
    """Returns the items of several micro-batches as one tensor, None if there are none."""
    found = [each for each in items if each is not None]
    return torch.cat(found) if found else None


def shares(
    term: StepTerm, items: Sequence[Tensor | None], module: nn.Module | None, gather: GatherRows, world: int
) -> list[StepShare]:
    """Returns the share of each micro-batch of this rank, from their items; none if no rank has items.

    Every rank must call it. Gradients are summed over ranks, so the parameters' are divided by `world`.
    """
    every, first = gather(all_items(items))
    if every is None:
        return []
    trained = {n: p for n, p in module.named_parameters() if p.requires_grad} if module is not None else {}
    with torch.enable_grad():
        every = every.detach().requires_grad_()
        value = plugin_calls.step_value(term, every, module)
        reached = value.requires_grad  # a value without a graph is found by the dry run
        found = (
            torch.autograd.grad(value, [every, *trained.values()], allow_unused=True) if reached else [None]
        )
    d_every = torch.zeros_like(every) if found[0] is None else found[0]
    d_parameters = {n: d / world for n, d in zip(trained, found[1:], strict=False) if d is not None}
    sizes = [0 if each is None else len(each) for each in items]
    d_own = d_every[first : first + sum(sizes)].split(sizes)
    value = value.detach() / (world * len(items))
    return [StepShare(d, value, {} if number else d_parameters) for number, d in enumerate(d_own)]
