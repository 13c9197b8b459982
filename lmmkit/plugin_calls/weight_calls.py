"""Calls into what weights the rows of the next-token loss: weights of characters, and of rows."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from lmmkit.api.components import TokenWeight
from lmmkit.api.ctx import Ctx
from lmmkit.api.layout import CharWeight
from lmmkit.api.sample import Sample
from lmmkit.errors import UserError
from lmmkit.errors.dry_run import WEIGHTS
from lmmkit.plugin_calls.forms import FLOATS
from lmmkit.plugin_calls.guard import calling, place_of, returned, shown

SPANS = "a list of (from, to, weight): two whole numbers, and a number"


def has_spans(weigher: TokenWeight) -> bool:
    """Returns whether a plugin gives weights to characters of answers."""
    return type(weigher).spans is not TokenWeight.spans


def has_weigh(weigher: TokenWeight) -> bool:
    """Returns whether a plugin gives weights to rows in the step. It must, unless it gives some to characters."""
    return type(weigher).weigh is not TokenWeight.weigh or not has_spans(weigher)


def spans(weigher: TokenWeight, sample: Sample, text: str) -> list[CharWeight]:
    """Returns the weights of characters of an answer."""
    name = weigher.name
    with calling(name, "spans", weigher):
        found = weigher.spans(sample, text)
    if not isinstance(found, list | tuple):
        raise returned(name, "spans", weigher, shown(found), SPANS)
    for each in found:
        begin, end, weight = each if isinstance(each, list | tuple) and len(each) == 3 else (None, None, 0.0)
        if type(begin) is not int or type(end) is not int or type(weight) not in (int, float):
            raise returned(name, "spans", weigher, f"{each!r:.80}", SPANS)
        if not 0 <= begin <= end <= len(text) + 1:
            got = f"({begin}, {end}, {weight}) for an answer of {len(text)} characters"
            raise returned(name, "spans", weigher, got, f"0 <= from <= to <= {len(text) + 1}")
        if not 0 <= weight < math.inf:
            where = f"{name}.spans, {place_of(weigher, 'spans')}"
            raise UserError(WEIGHTS.at(where, got=f"{weight:g} in sample {sample.key}"))
    return [CharWeight(*each) for each in found]


def weigh(weigher: TokenWeight, ctx: Ctx) -> Tensor:
    """Returns the weight of each row of the next-token loss, [S], detached."""
    with calling(weigher.name, "weigh", weigher), torch.no_grad():
        found = weigher.weigh(ctx)
    wanted = ctx.batch.count["next_token"]
    fits = isinstance(found, Tensor) and found.dtype in FLOATS
    if not fits or found.shape != (wanted,):
        expected = f"{wanted} weights in float32, one for each row of next_token"
        raise returned(weigher.name, "weigh", weigher, shown(found), expected)
    return found.detach()


def wrong_weights(weigher: TokenWeight, got: str) -> UserError:
    """Returns the error for weights that `weigh` may not give."""
    return UserError(WEIGHTS.at(f"{weigher.name}.weigh, {place_of(weigher, 'weigh')}", got=got))
