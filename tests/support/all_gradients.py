"""The gradients of all parameters of a model, against those of its plain twin."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from tests.support.plain_twins import off, show


def all_gradients(made: nn.Module, loss: Tensor) -> dict[str, Tensor]:
    """Returns the gradient of each trainable parameter by name: zeros where the loss does not depend on it."""
    named = {name: p for name, p in made.named_parameters() if p.requires_grad}
    found = torch.autograd.grad(loss, list(named.values()), allow_unused=True)
    return {
        n: torch.zeros_like(p) if g is None else g for (n, p), g in zip(named.items(), found, strict=True)
    }


def gradient_errors(got: Mapping[str, Tensor], want: Mapping[str, Tensor]) -> dict[str, float]:
    """Returns max|got - want| of each parameter as a share of max|want|; of a thousandth of the largest of all
    gradients, if that is more."""
    largest = max(float(g.abs().max()) for g in want.values())
    return {
        name: float((got[name] - g).abs().max()) / max(float(g.abs().max()), 1e-3 * largest)
        for name, g in want.items()
    }


def assert_alike(made: nn.Module, got: Tensor, want: Tensor, limit: float, *, least: int = 21) -> None:
    """Compares a loss and all its gradients with those of the twin, of which at least `least` are not zero."""
    expected = all_gradients(made, want)
    errors = {"total": off(got, want), **gradient_errors(all_gradients(made, got), expected)}
    show("off", max(errors.values()))
    assert max(errors.values()) < limit, {name: e for name, e in errors.items() if e >= limit}
    assert sum(bool(g.any()) for g in expected.values()) >= least
