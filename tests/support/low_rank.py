"""A model with low-rank updates against a plain one with the merged weights: gradients, the factors' own among them."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from lmmkit.model.layers import FusedLinear
from lmmkit.model.transforms import lora
from lmmkit.objective import Objective
from tests.support.all_gradients import gradient_errors
from tests.support.plain_twins import show


def merged_into(plain: Objective, made: Objective) -> Objective:
    """Gives `plain` the weights of `made` with its updates merged."""
    merged = lora.merged(made.lmm.decoder)
    with torch.no_grad():
        for name, p in plain.lmm.decoder.named_parameters():
            if name in merged:
                p.copy_(merged[name])
    return plain


def factor_gradients(made: Objective, gradients: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Returns the gradient of each factor by the chain rule, from those of the merged weights W + scale B A."""
    found = {}
    for path, linear in made.named_modules():
        for part, adapter in getattr(linear, lora.CHILD, {}).items():
            rows = linear.slices[part] if isinstance(linear, FusedLinear) else slice(None)
            gradient, at = gradients[f"{path}.weight"][rows], f"{path}.{lora.CHILD}.{part}"
            found[f"{at}.a"] = adapter.scale * adapter.b.detach().T @ gradient
            found[f"{at}.b"] = adapter.scale * gradient @ adapter.a.detach().T
    return found


def assert_factors(
    made: Objective, got: Mapping[str, Tensor], plain: Mapping[str, Tensor], limit: float
) -> None:
    """Compares all gradients of the model with updates, `got`, with those of the plain one."""
    factors = factor_gradients(made, plain)
    assert len(factors) == 2 * len(lora.adapters(made)) and all(g.any() for g in factors.values())
    want = {**plain, **factors}
    assert set(got) == set(want)
    errors = gradient_errors(got, want)
    show("off_factors", max(errors[name] for name in factors))
    assert max(errors.values()) < limit, {name: e for name, e in errors.items() if e >= limit}
