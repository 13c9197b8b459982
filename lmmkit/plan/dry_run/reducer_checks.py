"""Checks of image reducers on drawn features: sizes, gradients, and rows of an image that follow from it alone."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lmmkit.api.components import ImageReducer
from lmmkit.api.model_info import Dims
from lmmkit.errors import Problem
from lmmkit.errors.dry_run import IN_PLACE, NO_GRADIENT, NOT_FINITE, NOT_PURE
from lmmkit.model.image_rows import ReducedRows
from lmmkit.plan.dry_run.subject import Check, global_seed, problem
from lmmkit.plugin_calls.devices import watched

IMAGES = 3
NEAR = 1e-4  # of the largest value: products of one image and of several round differently


@dataclass(frozen=True)
class ReducerSubject:
    """Holds a reducer with its module. `alone`: the model has no connector."""

    reducer: ImageReducer
    module: nn.Module | None
    dims: Dims
    alone: bool = False

    @cached_property
    def features_IND(self) -> Tensor:
        """Returns features of images as an encoder gives them."""
        image, noise = self.dims.image, torch.Generator().manual_seed(0)
        return torch.randn(IMAGES, image.tokens, image.width, generator=noise)

    def rows(self, features_IND: Tensor) -> Tensor:
        """Returns the rows of images, [I, rows, D], with a stand-in for the connector."""
        return ReducedRows(self.reducer, self.module, self.dims).project(features_IND, self._connect)

    def _connect(self, x: Tensor) -> Tensor:
        if self.alone:
            return x
        weight_1E = torch.linspace(0.5, 1.5, self.dims.image.width, device=x.device)[None]
        return F.linear(x, weight_1E) * torch.linspace(0.5, 1.5, self.dims.width, device=x.device)

    def problem(self, code, got: str, **fields: object) -> Problem:
        return problem(code, self.reducer.name, "reduce", self.reducer, got, **fields)


@torch.no_grad()
def pure_rows(subject: ReducerSubject) -> Iterator[Problem]:
    """Asks for the rows twice, with other global generators, and once for each image alone."""
    given = subject.features_IND.clone()
    with global_seed(0):
        found = subject.rows(given)
    if not torch.equal(given, subject.features_IND):
        yield subject.problem(
            IN_PLACE, "other features of the encoder after the call", expected="features unchanged"
        )
    if not bool(found.isfinite().all()):
        yield subject.problem(NOT_FINITE, "rows that are not finite")
        return
    with global_seed(1):
        again = subject.rows(subject.features_IND.clone())
    if not torch.equal(found, again):
        yield subject.problem(NOT_PURE, "other rows in a second call", expected="the same rows in each call")
        return
    single = torch.cat([subject.rows(features_ND[None].clone()) for features_ND in subject.features_IND])
    if float((single - found).abs().max()) > NEAR * float(found.abs().max()):
        expected = "rows of an image that do not depend on the other images of a micro-batch"
        yield subject.problem(NOT_PURE, "other rows for an image alone", expected=expected)


def every_gradient(subject: ReducerSubject) -> Iterator[Problem]:
    """Checks that the rows give every trainable parameter of the module a gradient."""
    if subject.module is None:
        return
    named = {name: p for name, p in subject.module.named_parameters() if p.requires_grad}
    if not named:
        return
    total = subject.rows(subject.features_IND.clone()).square().sum()
    found = (
        torch.autograd.grad(total, list(named.values()), allow_unused=True)
        if total.requires_grad
        else [None] * len(named)
    )
    without = [name for name, gradient in zip(named, found, strict=True) if gradient is None]
    if without:
        yield subject.problem(NO_GRADIENT, f"no gradient of {', '.join(without)}")


def reducer_on_device(subject: ReducerSubject) -> Iterator[Problem]:
    """Asks for the rows of images, and watches where tensors are."""
    yield from watched(subject.reducer, (), lambda: subject.rows(subject.features_IND.clone()))


CHECKS: tuple[Check[ReducerSubject], ...] = (pure_rows, every_gradient, reducer_on_device)
