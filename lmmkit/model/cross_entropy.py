"""Next-token losses and log-probabilities of a head, without all logits in memory at once, without a copy of any."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import pairwise

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

LOGIT_BYTES = 64 << 20  # of float32 logits at once
LEAST_ROWS = 256  # a chunk of fewer makes slow matrix products


def linear_cross_entropy(hidden_SD: Tensor, weight_VD: Tensor, target_S: Tensor) -> Tensor:
    """Returns -log softmax(hidden @ weight.T)[target], [S] in float32 or wider.

    The weight may have another precision than `hidden_SD`, in which the products are computed. The logits
    are computed in chunks of `LOGIT_BYTES`. A single chunk is saved, and changed in place into its gradient;
    several chunks are computed again in the backward pass, and the gradient of the weight is summed over them
    in float32 or wider.
    """
    hidden_SD = _autocast(hidden_SD)
    return _LinearCrossEntropy.apply(hidden_SD, weight_VD, target_S)


class _LinearCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(ctx, hidden_SD: Tensor, weight_VD: Tensor, target_S: Tensor):
        kept, lses, losses = None, [], []
        chunks, cast_VD = list(_chunks(hidden_SD, weight_VD)), weight_VD.to(hidden_SD.dtype)
        for rows in chunks:
            logits_CV = _logits(hidden_SD[rows], cast_VD)
            lses.append(logits_CV.logsumexp(-1))
            losses.append(lses[-1] - logits_CV.gather(1, target_S[rows, None]).squeeze(1))
            kept = logits_CV
        lse_S = torch.cat([*lses, hidden_SD.new_empty(0, dtype=_wide(hidden_SD))])
        ctx.save_for_backward(hidden_SD, weight_VD, target_S, lse_S)
        ctx.logits_SV = kept if len(chunks) == 1 and any(ctx.needs_input_grad) else None
        return torch.cat([*losses, lse_S[:0]])

    @staticmethod
    @once_differentiable
    def backward(ctx, d_S):
        hidden_SD, weight_VD, target_S, lse_S = ctx.saved_tensors
        kept, ctx.logits_SV = ctx.logits_SV, None  # a second backward pass computes them again
        gradients = _Gradients(hidden_SD, weight_VD, ctx.needs_input_grad)
        for rows in _chunks(hidden_SD, weight_VD):
            logits_CV = _logits(hidden_SD[rows], gradients.cast_VD) if kept is None else kept
            p_CV = logits_CV.sub_(lse_S[rows, None]).exp_()
            p_CV[torch.arange(len(p_CV), device=p_CV.device), target_S[rows]] -= 1
            gradients.add(rows, p_CV.mul_(d_S[rows, None]))
        return *gradients.found(), None


def log_probs(
    hidden_RD: Tensor, weight_VD: Tensor, place_P: Tensor, target_P: Tensor
) -> tuple[Tensor, Tensor]:
    """Returns log softmax(hidden @ weight.T) at distinct pairs (row, target), [P], and the log-sum-exp of each
    row's logits, [R], in float32 or wider.

    Pair p is row `place_P[p]` with `target_P[p]`; `place_P` is ascending and on the host. Precision, chunks and
    memory are those of `linear_cross_entropy`.
    """
    hidden_RD = _autocast(hidden_RD)
    starts = [rows.start for rows in _chunks(hidden_RD, weight_VD)]
    bounds = np.searchsorted(place_P.numpy(), [*starts, len(hidden_RD)]).tolist()
    pairs = [slice(a, b) for a, b in pairwise(bounds)]
    place_P = place_P.to(hidden_RD.device, non_blocking=True)
    return _LogProbs.apply(hidden_RD, weight_VD, place_P, target_P, pairs)


class _LogProbs(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx, hidden_RD: Tensor, weight_VD: Tensor, place_P: Tensor, target_P: Tensor, pairs: list[slice]
    ):
        none = hidden_RD.new_empty(0, dtype=_wide(hidden_RD))
        kept, lses, found = None, [none], [none]
        cast_VD = weight_VD.to(hidden_RD.dtype)
        for rows, part in zip(_chunks(hidden_RD, weight_VD), pairs, strict=True):
            kept, at_P = _logits(hidden_RD[rows], cast_VD), place_P[part] - rows.start
            lses.append(kept.logsumexp(-1))
            found.append(kept[at_P, target_P[part]] - lses[-1][at_P])
        lse_R = torch.cat(lses)
        ctx.save_for_backward(hidden_RD, weight_VD, place_P, target_P, lse_R)
        ctx.pairs = pairs
        ctx.logits_RV = kept if len(pairs) == 1 and any(ctx.needs_input_grad) else None
        return torch.cat(found), lse_R

    @staticmethod
    @once_differentiable
    def backward(ctx, d_logp_P, d_lse_R):
        hidden_RD, weight_VD, place_P, target_P, lse_R = ctx.saved_tensors
        kept, ctx.logits_RV = ctx.logits_RV, None  # a second backward pass computes them again
        gradients = _Gradients(hidden_RD, weight_VD, ctx.needs_input_grad)
        # logp = logit - lse, so softmax gets the gradient of lse less those of the row's log-probabilities
        through_R = d_lse_R.index_add(0, place_P, -d_logp_P)
        for rows, part in zip(_chunks(hidden_RD, weight_VD), ctx.pairs, strict=True):
            logits_CV = _logits(hidden_RD[rows], gradients.cast_VD) if kept is None else kept
            d_CV = logits_CV.sub_(lse_R[rows, None]).exp_().mul_(through_R[rows, None])
            d_CV[place_P[part] - rows.start, target_P[part]] += d_logp_P[part]
            gradients.add(rows, d_CV)
        return *gradients.found(), None, None, None


class FixedLogits:
    """Has the logits of rows that get no gradient, such as a teacher's: `[part]` computes those of some rows."""

    def __init__(self, hidden_QD: Tensor, weight_VD: Tensor):
        self.hidden_QD = _autocast(hidden_QD.detach())
        self.cast_VD = weight_VD.detach().to(self.hidden_QD.dtype)

    @torch.no_grad()
    def __getitem__(self, part: slice) -> Tensor:
        return _logits(self.hidden_QD[part], self.cast_VD)


def top_log_probs(hidden_QD: Tensor, weight_VD: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """Returns the tokens with the k largest log-probabilities of each row, and these, largest first: [Q, k] each.

    No gradient is computed. Precision, chunks and memory are those of `linear_cross_entropy`.
    """
    logits, tokens, found = FixedLogits(hidden_QD, weight_VD), [], []
    for part in list(_chunks(hidden_QD, weight_VD)) or [slice(0, 0)]:
        logits_CV = logits[part]
        top = logits_CV.topk(k)
        found.append(top.values - logits_CV.logsumexp(-1, keepdim=True))
        tokens.append(top.indices)
    return torch.cat(tokens), torch.cat(found)


RowFunction = Callable[..., Tensor]
"""Returns a loss for each row of a chunk, [C], from its logits [C, V], and from what is beside them."""


def row_losses(
    hidden_QD: Tensor, weight_VD: Tensor, rows: RowFunction, *beside_Q: Tensor | FixedLogits
) -> Tensor:
    """Returns `rows(hidden @ weight.T, *beside)`, [Q], computed in chunks of rows: once here, and once in the
    backward pass, where torch differentiates it by the logits. `beside_Q` have values for each row, such as its target.

    Precision and memory are those of `linear_cross_entropy`.
    """
    hidden_QD = _autocast(hidden_QD)
    return _RowLosses.apply(hidden_QD, weight_VD, rows, beside_Q)


class _RowLosses(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx,
        hidden_QD: Tensor,
        weight_VD: Tensor,
        rows: RowFunction,
        beside_Q: tuple[Tensor | FixedLogits, ...],
    ):
        cast_VD = weight_VD.to(hidden_QD.dtype)
        ctx.save_for_backward(hidden_QD, weight_VD)
        ctx.rows, ctx.beside_Q = rows, beside_Q
        found = [hidden_QD.new_empty(0, dtype=_wide(hidden_QD))]
        for part in _chunks(hidden_QD, weight_VD):
            logits_CV = _logits(hidden_QD[part], cast_VD)
            with torch.autocast(hidden_QD.device.type, enabled=False):
                found.append(rows(logits_CV, *(each[part] for each in beside_Q)))
        return torch.cat(found)

    @staticmethod
    @once_differentiable
    def backward(ctx, d_Q):
        hidden_QD, weight_VD = ctx.saved_tensors
        gradients = _Gradients(hidden_QD, weight_VD, ctx.needs_input_grad)
        for part in _chunks(hidden_QD, weight_VD):
            logits_CV = _logits(hidden_QD[part], gradients.cast_VD).requires_grad_()
            with torch.enable_grad(), torch.autocast(hidden_QD.device.type, enabled=False):
                loss_C = ctx.rows(logits_CV, *(each[part] for each in ctx.beside_Q))
            (d_CV,) = torch.autograd.grad(loss_C, logits_CV, d_Q[part])
            gradients.add(part, d_CV)
        return *gradients.found(), None, None


class _Gradients:
    """Sums the gradients of hidden states and weight over chunks of rows, those that are needed."""

    def __init__(self, hidden_ND: Tensor, weight_VD: Tensor, needed: tuple[bool, ...]):
        self.hidden_ND, self.weight_VD, self.of_weight = hidden_ND, weight_VD, needed[1]
        self.cast_VD = weight_VD.to(hidden_ND.dtype)
        self.d_hidden_ND = torch.empty_like(hidden_ND) if needed[0] else None
        self.d_weight_VD: Tensor | None = None

    def add(self, rows: slice, d_CV: Tensor) -> None:
        """Adds the gradient of the logits of a chunk."""
        d_CV = d_CV.to(self.hidden_ND.dtype)
        if self.d_hidden_ND is not None:
            torch.mm(d_CV, self.cast_VD, out=self.d_hidden_ND[rows])
        if self.of_weight:
            self.d_weight_VD = _plus_product(self.d_weight_VD, d_CV.T, self.hidden_ND[rows])

    def found(self) -> tuple[Tensor | None, Tensor | None]:
        """Returns both sums; None for one that is not needed."""
        if self.of_weight and self.d_weight_VD is None:
            return self.d_hidden_ND, torch.zeros_like(self.weight_VD)
        summed = None if self.d_weight_VD is None else self.d_weight_VD.to(self.weight_VD.dtype)
        return self.d_hidden_ND, summed


def _autocast(hidden_ND: Tensor) -> Tensor:
    """Returns the states in autocast's dtype, if autocast is on."""
    device = hidden_ND.device.type
    return hidden_ND.to(torch.get_autocast_dtype(device)) if torch.is_autocast_enabled(device) else hidden_ND


def _plus_product(total: Tensor | None, a: Tensor, b: Tensor) -> Tensor:
    """Returns total + a @ b in float32 or wider; `total` is overwritten, and None is zero."""
    if total is None:
        return (a @ b).to(_wide(a))
    return total.addmm_(a, b) if total.dtype == a.dtype else total.add_(a @ b)


def chunk_rows(vocab: int) -> int:
    """Returns the number of rows whose logits are in memory at once."""
    return max(LEAST_ROWS, LOGIT_BYTES // (4 * vocab))


def _chunks(hidden_SD: Tensor, weight_VD: Tensor) -> Iterator[slice]:
    size = chunk_rows(len(weight_VD))
    return (slice(a, a + size) for a in range(0, len(hidden_SD), size))


def _wide(x: Tensor) -> torch.dtype:
    return torch.promote_types(x.dtype, torch.float32)


def _logits(hidden_CD: Tensor, weight_VD: Tensor) -> Tensor:
    return F.linear(hidden_CD, weight_VD).to(_wide(hidden_CD))
