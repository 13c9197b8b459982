"""Each view of a batch alone: all states of all its rows, from whole maps, for the twins of needs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from lmmkit.data.micro_batch.laid_out import LaidOut
from lmmkit.objective import Objective
from tests.support import plain_teacher, plain_twins
from tests.support.tiny_model import pixels


@dataclass(frozen=True)
class DenseView:
    """Holds the rows of one view: `states[n]` after n blocks, and after the final norm."""

    member: LaidOut
    states: list[Tensor]
    hidden_TD: Tensor
    features: dict[str, list[Tensor]]
    head_VD: Tensor
    maps: Tensor  # [L, H, T, T]

    def at(self, layer: int | str) -> Tensor:
        return self.hidden_TD if layer == "final" else self.states[int(layer)]


def dense(made: Objective, member: LaidOut) -> DenseView:
    """Runs one view alone, with a gradient."""
    lmm, rows = made.lmm, []
    features: dict[str, list[Tensor]] = {"encoder": [], "projected": []}
    for span in member.layout:
        if span.kind == "text":
            rows.append(lmm.decoder.embed(torch.tensor(span.ids)))
        elif span.image is not None:
            pixels_1CXY = pixels(span.image, member.view.sample.image_fit)[None]
            features["encoder"].append(lmm.vision(pixels_1CXY.to(lmm.decoder.norm.weight))[0])
            features["projected"].append(lmm.connector(features["encoder"][-1]))
            rows.append(features["projected"][-1])
            for name, teacher in made.teachers.items():
                found = plain_teacher.features(teacher, span.image, member.view.sample.image_fit)
                features.setdefault(f"teachers.{name}", []).append(found)
        else:
            rows.append(made.plugins[span.owner]())
    states, maps = plain_twins.blocks(lmm.decoder, torch.cat(rows))
    shape, norm = lmm.decoder.shape, lmm.decoder.norm.weight
    hidden_TD = plain_twins.rms(states[-1], norm, shape.norm_eps)
    return DenseView(member, states, hidden_TD, features, lmm.decoder.head.weight, maps)


def hidden_at(views: Sequence[DenseView], need) -> Tensor:
    """Gives what `HiddenAt` asks for."""
    return torch.cat(
        [each.at(need.layer)[need.at.positions(each.member.layout)] for each in _of(views, need.at)]
    )


def hidden_mean(views: Sequence[DenseView], need) -> Tensor:
    """Gives what `HiddenMean` asks for."""
    found = [each.at(need.layer)[need.over.positions(each.member.layout)] for each in _of(views, need.over)]
    return torch.stack([x.mean(0) for x in found if len(x)])


def vision_at(views: Sequence[DenseView], need) -> Tensor:
    """Gives what `VisionAt` asks for, of selectors that take all image rows of a view."""
    found = torch.cat([x for each in _of(views, need.at) for x in each.features[need.stage]])
    return found.detach() if need.detach else found


def teacher_at(views: Sequence[DenseView], need) -> Tensor:
    """Gives what `TeacherAt` asks for, of selectors that take all image rows of a view."""
    name = f"teachers.{need.teacher}"
    return torch.cat([x for each in _of(views, need.at) for x in each.features.get(name, [])])


def attn_to(views: Sequence[DenseView], need) -> Tensor:
    """Gives what `AttnTo` asks for."""
    found, width = [], 0
    for each in _of(views, need.q):
        keys = need.k.positions(each.member.layout)
        queries = [q for q in need.q.positions(each.member.layout) if len(keys) and q >= keys[0]]
        maps = each.maps if need.layers == "all" else each.maps[list(need.layers)]
        heads = getattr(need, "heads", "all")
        maps = maps if heads == "all" else maps[:, list(heads)]
        for q in queries:
            seen = [k for k in keys if k <= q]
            found.append(maps.mean((0, 1))[q, seen])
            width = max(width, len(seen))
    return torch.stack([torch.nn.functional.pad(x, (0, width - len(x))) for x in found])


def attn_mass(views: Sequence[DenseView], need) -> Tensor:
    """Gives what `AttnMass` asks for."""
    return attn_to(views, need).sum(-1)


def log_prob(views: Sequence[DenseView], need) -> Tensor:
    """Returns the twin of `LogProb`, from all logits."""
    return _targets(
        views, need, lambda logits_RV, target_R: logits_RV.log_softmax(-1)[range(len(target_R)), target_R]
    )


def log_sum_exp(views: Sequence[DenseView], need) -> Tensor:
    """Returns the twin of `LogSumExp`, from all logits."""
    return _targets(views, need, lambda logits_RV, target_R: logits_RV.exp().sum(-1).log())


def targets(views: Sequence[DenseView], need) -> list[list[tuple[int, int]]]:
    """Returns (position, id) of the targets that a need of log-probabilities selects, by view."""
    found = []
    for member in (each.member for each in _of(views, need.at)):
        selected, place = [], 0
        for span in member.layout:
            for i in range(span.n):
                if span.supervised and place + i and place + i in need.at.positions(member.layout):
                    selected.append((place + i, span.ids[i]))
            place += span.n
        found.append(selected)
    return found


def _targets(views: Sequence[DenseView], need, value) -> Tensor:
    found = []
    for each, selected in zip(_of(views, need.at), targets(views, need), strict=True):
        logits_TV = each.hidden_TD @ each.head_VD.T
        rows = [place - 1 for place, _ in selected]
        found.append(value(logits_TV[rows], [target for _, target in selected]))
    return torch.cat(found)


def _of(views: Sequence[DenseView], select) -> list[DenseView]:
    return [each for each in views if select.takes(each.member.view)]
