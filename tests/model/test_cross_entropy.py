"""The head's own cross entropy against torch's plain one, values and gradients."""

import pytest
import torch
import torch.nn.functional as F

from lmmkit.model import cross_entropy
from lmmkit.model.cross_entropy import (
    FixedLogits,
    linear_cross_entropy,
    log_probs,
    row_losses,
    top_log_probs,
)
from tests.support.plain_twins import off, show

TIGHT = {torch.float64: 1e-12, torch.float32: 5e-6}


def given(rows: int, dtype: torch.dtype, width: int = 16, vocab: int = 53):
    draw = torch.Generator().manual_seed(rows)
    hidden_SD, weight_VD, d_S = (
        torch.randn(*size, generator=draw, dtype=torch.float64).to(dtype)
        for size in ((rows, width), (vocab, width), (rows,))
    )
    target_S = torch.randint(vocab, (rows,), generator=draw)
    return hidden_SD.requires_grad_(), weight_VD.requires_grad_(), target_S, d_S


def plain(hidden_SD, weight_VD, target_S):
    return F.cross_entropy(hidden_SD @ weight_VD.T, target_S, reduction="none")


def found(loss, hidden_SD, weight_VD, target_S, d_S):
    losses_S = loss(hidden_SD, weight_VD, target_S)
    return (losses_S, *torch.autograd.grad(losses_S, (hidden_SD, weight_VD), d_S))


@pytest.fixture(params=["one chunk", "several chunks"])
def small_chunks(request, monkeypatch):
    if request.param == "several chunks":
        monkeypatch.setattr(cross_entropy, "LOGIT_BYTES", 1)
        monkeypatch.setattr(cross_entropy, "LEAST_ROWS", 7)


@pytest.mark.parametrize("dtype", TIGHT)
@pytest.mark.parametrize("rows", [1, 7, 30])
def test_values_and_gradients_are_the_plain_ones(rows, dtype, small_chunks):
    for got, want in zip(
        found(linear_cross_entropy, *given(rows, dtype)), found(plain, *given(rows, dtype)), strict=True
    ):
        assert off(got, want) < TIGHT[dtype]


def smoothed(logits_CV, target_C):
    """Returns a function of whole rows: label smoothing, and the square of the log-sum-exp."""
    plain = F.cross_entropy(logits_CV, target_C, reduction="none", label_smoothing=0.1)
    return plain + 0.01 * logits_CV.logsumexp(-1).square()


@pytest.mark.parametrize("dtype", TIGHT)
@pytest.mark.parametrize("rows", [0, 1, 7, 30])
def test_a_function_of_rows_in_chunks_is_that_of_all_logits(rows, dtype, small_chunks):
    def in_chunks(hidden_QD, weight_VD, target_Q):
        return row_losses(hidden_QD, weight_VD, smoothed, target_Q)

    def at_once(hidden_QD, weight_VD, target_Q):
        return smoothed(hidden_QD @ weight_VD.T, target_Q)

    for got, want in zip(
        found(in_chunks, *given(rows, dtype)), found(at_once, *given(rows, dtype)), strict=True
    ):
        assert got.dtype == dtype and got.shape == want.shape
        assert rows == 0 or off(got, want) < TIGHT[dtype]


def of_two(logits_CV, target_C, other_CV):
    """Returns a function of both models' rows that is not linear in either."""
    p_CV, q_CV = logits_CV.log_softmax(-1), (other_CV / 2).log_softmax(-1)
    return (p_CV.exp() * (p_CV - q_CV)).sum(-1) + (q_CV.exp() * p_CV.square()).sum(-1) - p_CV[:, 0] * target_C


@pytest.mark.parametrize("dtype", TIGHT)
@pytest.mark.parametrize("rows", [0, 1, 7, 30])
def test_rows_beside_those_of_another_model_are_those_of_all_logits(rows, dtype, small_chunks):
    draw = torch.Generator().manual_seed(5)
    other_QE, head_VE = (torch.randn(n, 6, generator=draw, dtype=torch.float64).to(dtype) for n in (rows, 53))
    head_VE.requires_grad_()

    def in_chunks(hidden_QD, weight_VD, target_Q):
        return row_losses(hidden_QD, weight_VD, of_two, target_Q, FixedLogits(other_QE, head_VE))

    def at_once(hidden_QD, weight_VD, target_Q):
        return of_two(hidden_QD @ weight_VD.T, target_Q, (other_QE @ head_VE.T).detach())

    for got, want in zip(
        found(in_chunks, *given(rows, dtype)), found(at_once, *given(rows, dtype)), strict=True
    ):
        assert got.dtype == dtype and got.shape == want.shape
        assert rows == 0 or off(got, want) < TIGHT[dtype]


def test_logits_of_another_model_are_made_in_chunks_and_under_autocast_of_bfloat16_products(monkeypatch):
    monkeypatch.setattr(cross_entropy, "LOGIT_BYTES", 1)
    monkeypatch.setattr(cross_entropy, "LEAST_ROWS", 7)
    hidden_SD, weight_VD, target_S, _ = given(16, torch.float32)
    other_SD, head_VD = (x.detach() * 3 for x in (hidden_SD, weight_VD))
    seen = []

    def watched(logits_CV, target_C, other_CV):
        seen.append((tuple(other_CV.shape), other_CV.dtype, other_CV.requires_grad))
        return of_two(logits_CV, target_C, other_CV)

    with torch.autocast("cpu", torch.bfloat16):
        fixed = FixedLogits(other_SD, head_VD)
        row_losses(hidden_SD, weight_VD, watched, target_S, fixed).sum().backward()
    assert seen == [((rows, 53), torch.float32, False) for rows in (7, 7, 2)] * 2
    assert torch.equal(fixed[3:9], (other_SD.bfloat16() @ head_VD.bfloat16().T)[3:9].float())


def test_a_function_of_rows_gets_one_chunk_at_a_time_in_float32(monkeypatch):
    monkeypatch.setattr(cross_entropy, "LOGIT_BYTES", 1)
    monkeypatch.setattr(cross_entropy, "LEAST_ROWS", 7)
    seen = []

    def watched(logits_CV, target_C):
        seen.append((tuple(logits_CV.shape), logits_CV.dtype, torch.is_autocast_enabled("cpu")))
        return smoothed(logits_CV, target_C)

    hidden_SD, weight_VD, target_S, _ = given(16, torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        losses = row_losses(hidden_SD, weight_VD, watched, target_S)
    losses.sum().backward()
    assert losses.dtype == torch.float32 and weight_VD.grad.dtype == torch.float32
    assert seen == [((rows, 53), torch.float32, False) for rows in (7, 7, 2)] * 2


def pairs(rows: int, count: int, vocab: int = 53) -> tuple[torch.Tensor, torch.Tensor]:
    """Distinct pairs (row, target) by row: some rows have several, some none."""
    draw = torch.Generator().manual_seed(count)
    code_P = torch.randperm(rows * vocab, generator=draw)[:count].sort().values
    return code_P // vocab, code_P % vocab


def of_pairs(compute, hidden_RD, weight_VD, place_P, target_P):
    """Returns values and gradients of a function of log-probabilities and log-sum-exps that is not linear."""
    logp_P, lse_R = compute(hidden_RD, weight_VD, place_P, target_P)
    value = (torch.sigmoid(logp_P) * torch.arange(len(logp_P)).cos()).sum() + lse_R.square().sum()
    return (logp_P, lse_R, *torch.autograd.grad(value, (hidden_RD, weight_VD), retain_graph=True))


def plain_pairs(hidden_RD, weight_VD, place_P, target_P):
    logits_RV = hidden_RD @ weight_VD.T
    return logits_RV.log_softmax(-1)[place_P, target_P], logits_RV.logsumexp(-1)


@pytest.mark.parametrize("dtype", TIGHT)
@pytest.mark.parametrize(("rows", "count"), [(1, 1), (7, 3), (30, 60), (30, 0)])
def test_log_probabilities_and_their_gradients_are_the_plain_ones(rows, count, dtype, small_chunks):
    got, want = (
        of_pairs(compute, *given(rows, dtype)[:2], *pairs(rows, count))
        for compute in (log_probs, plain_pairs)
    )
    for a, b in zip(got, want, strict=True):
        assert off(a, b) < TIGHT[dtype]


def test_log_probabilities_of_one_target_a_row_are_the_losses_bit_for_bit(small_chunks):
    hidden_SD, weight_VD, target_S, d_S = given(20, torch.float32)
    losses_S, *gradients = found(linear_cross_entropy, hidden_SD, weight_VD, target_S, d_S)
    logp_P, _ = log_probs(hidden_SD, weight_VD, torch.arange(20), target_S)
    assert torch.equal(-logp_P, losses_S)
    others = torch.autograd.grad(-logp_P, (hidden_SD, weight_VD), d_S)
    assert all(off(a, b) < 1e-6 for a, b in zip(others, gradients, strict=True))


def test_log_probabilities_never_have_all_logits(monkeypatch):
    monkeypatch.setattr(cross_entropy, "LOGIT_BYTES", 1)
    monkeypatch.setattr(cross_entropy, "LEAST_ROWS", 7)
    most, logits = [0], cross_entropy._logits

    def counted(hidden_CD, weight_VD):
        most.append(len(hidden_CD))
        return logits(hidden_CD, weight_VD)

    monkeypatch.setattr(cross_entropy, "_logits", counted)
    of_pairs(log_probs, *given(30, torch.float32)[:2], *pairs(30, 60))
    assert max(most) == 7 and sum(most) == 60, "each row twice: forward and backward"


def test_log_probabilities_under_autocast_and_a_second_backward_pass():
    hidden_RD, weight_VD = given(30, torch.float32)[:2]
    with torch.autocast("cpu", torch.bfloat16):
        logp_P, lse_R = log_probs(hidden_RD, weight_VD, *pairs(30, 40))
    assert logp_P.dtype == lse_R.dtype == torch.float32
    want = plain_pairs(hidden_RD.bfloat16().float(), weight_VD.bfloat16().float(), *pairs(30, 40))
    assert off(logp_P, want[0]) < 0.02 and off(lse_R, want[1]) < 0.02
    value = logp_P.sum() + lse_R.sum()
    first, second = (torch.autograd.grad(value, (hidden_RD, weight_VD), retain_graph=True) for _ in range(2))
    assert all(off(a, b) < 0.02 and a.dtype == torch.float32 for a, b in zip(second, first, strict=True))
    want_gradients = torch.autograd.grad(sum(x.sum() for x in want), (hidden_RD, weight_VD))
    assert all(off(a, b) < 0.03 for a, b in zip(first, want_gradients, strict=True))


def test_a_second_backward_pass_gives_the_same(small_chunks):
    hidden_SD, weight_VD, target_S, d_S = given(20, torch.float64)
    losses_S = linear_cross_entropy(hidden_SD, weight_VD, target_S)
    first, second = (
        torch.autograd.grad(losses_S, (hidden_SD, weight_VD), d_S, retain_graph=True) for _ in range(2)
    )
    assert all(off(a, b) < 1e-12 for a, b in zip(first, second, strict=True))


def test_no_rows_are_no_losses_and_gradients_of_zero():
    losses_S, d_hidden, d_weight = found(linear_cross_entropy, *given(0, torch.float32))
    assert losses_S.shape == (0,) and d_hidden.shape == (0, 16) and not d_weight.any()


def test_a_frozen_head_gets_no_gradient_and_a_frozen_body_too():
    hidden_SD, weight_VD, target_S, _ = given(5, torch.float32)
    linear_cross_entropy(hidden_SD, weight_VD.detach(), target_S).sum().backward()
    linear_cross_entropy(hidden_SD.detach(), weight_VD, target_S).sum().backward()
    want = found(plain, *given(5, torch.float32)[:3], torch.ones(5))
    assert off(hidden_SD.grad, want[1]) < 5e-6 and off(weight_VD.grad, want[2]) < 5e-6


def test_under_autocast_losses_are_float32_of_bfloat16_products():
    hidden_SD, weight_VD, target_S, d_S = given(30, torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        losses_S = linear_cross_entropy(hidden_SD, weight_VD, target_S)
    assert losses_S.dtype == torch.float32
    want = plain(hidden_SD.bfloat16(), weight_VD.bfloat16(), target_S).float()
    assert off(losses_S, want) < 0.02
    gradients = torch.autograd.grad(losses_S, (hidden_SD, weight_VD), d_S)
    assert all(g.dtype == torch.float32 for g in gradients)
    exact = found(plain, *given(30, torch.float32))[1:]
    assert all(off(a, b) < 0.03 for a, b in zip(gradients, exact, strict=True))


def test_under_autocast_chunks_add_no_error_to_the_gradient_of_the_head(monkeypatch):
    """Sums in bfloat16 over 100 chunks err several times as much as one product."""
    rows, errors = 700, {}
    *tensors, target_S, d_S = given(rows, torch.float32)
    exact = found(
        plain, *(x.detach().bfloat16().double().requires_grad_() for x in tensors), target_S, d_S.double()
    )[2]
    monkeypatch.setattr(cross_entropy, "LOGIT_BYTES", 1)
    for chunk in (rows, 7):
        monkeypatch.setattr(cross_entropy, "LEAST_ROWS", chunk)
        with torch.autocast("cpu", torch.bfloat16):
            losses_S = linear_cross_entropy(*tensors, target_S)
        (gradient,) = torch.autograd.grad(losses_S, tensors[1], d_S)
        errors[chunk] = off(gradient, exact)
        show(f"error of the head's gradient, chunks of {chunk}", errors[chunk])
    assert errors[7] < 1.5 * errors[rows]


@pytest.mark.parametrize("rows", [0, 1, 7, 30])
def test_the_likeliest_tokens_are_the_first_of_all_sorted_ones(rows, small_chunks):
    hidden_QD, weight_VD, _, _ = given(rows, torch.float64)
    token_QK, logp_QK = top_log_probs(hidden_QD, weight_VD, 5)
    want = (hidden_QD @ weight_VD.T).log_softmax(-1).sort(-1, descending=True)
    assert torch.equal(token_QK, want.indices[:, :5]) and not logp_QK.requires_grad
    assert off(logp_QK, want.values[:, :5]) < 1e-12
