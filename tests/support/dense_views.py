"""Each view of a batch alone: all states of all its rows, from whole maps, for the twins of needs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from lmmkit.data.packing import LaidOut
from lmmkit.objective import Objective
from tests.support import plain_twins
from tests.support.tiny_model import pixels


@dataclass(frozen=True)
class DenseView:
    """Holds the rows of one view: `states[n]` after n blocks, and after the final norm."""

    member: LaidOut
    states: list[Tensor]
    hidden_TD: Tensor

    def at(self, layer: int | str) -> Tensor:
        return self.hidden_TD if layer == "final" else self.states[int(layer)]


def dense(made: Objective, member: LaidOut) -> DenseView:
    """Runs one view alone, with a gradient."""
    lmm, rows = made.lmm, []
    for span in member.layout:
        if span.kind == "text":
            rows.append(lmm.decoder.embed(torch.tensor(span.ids)))
        elif span.image is not None:
            pixels_1CXY = pixels(span.image, member.view.sample.image_fit)[None]
            rows.append(lmm.connector(lmm.vision(pixels_1CXY.to(lmm.decoder.norm.weight)))[0])
        else:
            rows.append(made.plugins[span.owner]())
    states, _ = plain_twins.blocks(lmm.decoder, torch.cat(rows))
    shape, norm = lmm.decoder.shape, lmm.decoder.norm.weight
    return DenseView(member, states, plain_twins.rms(states[-1], norm, shape.norm_eps))


def hidden_at(views: Sequence[DenseView], need) -> Tensor:
    """Gives what `HiddenAt` asks for."""
    return torch.cat(
        [each.at(need.layer)[need.at.positions(each.member.layout)] for each in _of(views, need.at)]
    )


def hidden_mean(views: Sequence[DenseView], need) -> Tensor:
    """Gives what `HiddenMean` asks for."""
    found = [each.at(need.layer)[need.over.positions(each.member.layout)] for each in _of(views, need.over)]
    return torch.stack([x.mean(0) for x in found if len(x)])


def _of(views: Sequence[DenseView], select) -> list[DenseView]:
    return [each for each in views if each.member.view.name == select.view]
