"""Checks of the modules of a component: what `reset_parameters` must fill, and what torch must find."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor, nn

from lmmkit import plugin_calls
from lmmkit.api.components import Component
from lmmkit.api.model_info import Dims
from lmmkit.errors import Problem
from lmmkit.errors.dry_run import LOST_VALUE, NOT_FINITE, NOT_PURE, UNINITIALISED, UNREGISTERED
from lmmkit.model.init import init
from lmmkit.plan.dry_run.subject import Check, global_seed, problem

State = Mapping[str, Tensor]


@dataclass(frozen=True)
class ModuleSubject:
    """Holds the module of a component, as a run builds it: on the meta device, then filled."""

    component: Component
    dims: Dims
    seed: int

    @cached_property
    def shell(self) -> nn.Module | None:
        """Returns the module as a run builds it, without values."""
        with torch.device("meta"):
            return plugin_calls.modules(self.component, self.dims)

    @cached_property
    def module(self) -> nn.Module | None:
        """Returns the module with the values of the run's first step."""
        if self.shell is not None and any(tensor.is_meta for tensor in _state(self.shell).values()):
            self.filled(0)
        return self.shell

    def filled(self, before: float, whole: int = 0) -> State:
        """Fills the module as a run does; its memory held `before`, and `whole` numbers. Returns its parameters
        and buffers."""
        assert self.shell is not None
        if any(tensor.is_meta for tensor in _state(self.shell).values()):
            self.shell.to_empty(device="cpu")
        with torch.no_grad():
            for tensor in _state(self.shell).values():
                tensor.fill_(before if tensor.is_floating_point() else whole)
        init(nn.ModuleDict({"plugins": nn.ModuleDict({self.component.name: self.shell})}), self.seed)
        return {
            name: tensor.detach() if tensor.is_floating_point() else tensor.clone()
            for name, tensor in _state(self.shell).items()
        }

    def built(self, seed: int) -> State:
        """Returns the values that `modules` itself gives, without a later `reset_parameters`."""
        with global_seed(seed), _empty_is_nan():
            module = plugin_calls.modules(self.component, self.dims)
        return {} if module is None else {name: t.detach() for name, t in _state(module).items()}


def _state(module: nn.Module) -> dict[str, Tensor]:
    return {**dict(module.named_parameters()), **dict(module.named_buffers())}


@contextmanager
def _empty_is_nan() -> Iterator[None]:
    """Makes `torch.empty` give NaN, so that memory without a value is not taken for one."""
    before = torch.get_deterministic_debug_mode()
    torch.set_deterministic_debug_mode("warn")  # `use_deterministic_algorithms` would import torch's compiler
    try:
        yield
    finally:
        torch.set_deterministic_debug_mode(before)


def unregistered(subject: ModuleSubject) -> Iterator[Problem]:
    """Finds tensors and layers that are plain attributes: they are not moved, trained or saved."""
    for path, part in subject.shell.named_modules() if subject.shell is not None else ():
        for key, value in vars(part).items():
            kept = _members(key, value)
            if any(
                isinstance(each, Tensor) or (isinstance(each, nn.Module) and each is not value)
                for each in kept
            ):
                got = f"`{'.'.join(filter(None, (path, key)))}`, {_kind(kept[0])} that torch does not find"
                yield problem(UNREGISTERED, subject.component.name, "modules", subject.component, got)


def _members(key: str, value: object) -> Sequence[object]:
    """Returns what is in an attribute: in a list, or in a dictionary of the plugin (torch's own begin with `_`), or the
    attribute itself."""
    if isinstance(value, list | tuple):
        return value
    if isinstance(value, dict) and not key.startswith("_"):
        return list(value.values())
    return [value]


def _kind(value: object) -> str:
    return "layers" if isinstance(value, nn.Module) else "a tensor"


def own_module(subject: ModuleSubject) -> Iterator[Problem]:
    """Builds the module again: a run, a reference and a copy of the model each have one of their own."""
    shell, name = subject.shell, subject.component.name
    if shell is None:
        return
    with torch.device("meta"):
        again = plugin_calls.modules(subject.component, subject.dims)
    if again is None or {id(part) for part in shell.modules()} & {id(part) for part in again.modules()}:
        got, expected = "parts of the module that it gave before", "a new module in each call"
        yield problem(NOT_PURE, name, "modules", subject.component, got, expected=expected)


def uninitialised(subject: ModuleSubject) -> Iterator[Problem]:
    """Fills the module over NaN, and whole numbers twice over others: what is left, nothing has filled."""
    if subject.shell is None:
        return
    filled = subject.filled(math.nan)
    left = [name for name, tensor in filled.items() if tensor.is_floating_point() and tensor.sum().isnan()]
    if any(not tensor.is_floating_point() for tensor in filled.values()):
        other = subject.filled(math.nan, 1)
        left += [
            name
            for name, tensor in filled.items()
            if not tensor.is_floating_point() and not torch.equal(tensor, other[name])
        ]
    for name in left:
        got = f"`{name}`, which has no certain value after `reset_parameters`"
        yield problem(UNINITIALISED, subject.component.name, "modules", subject.component, got)


def not_finite(subject: ModuleSubject) -> Iterator[Problem]:
    """Finds initial values that are NaN or infinite."""
    for name, tensor in _state(subject.module).items() if subject.module is not None else ():
        if not tensor.sum().isfinite():
            got = f"`{name}` with values that are not finite after `reset_parameters`"
            yield problem(NOT_FINITE, subject.component.name, "modules", subject.component, got)


def lost_values(subject: ModuleSubject) -> Iterator[Problem]:
    """Builds the module twice with values: a constant that `reset_parameters` draws over is lost in a run."""
    if subject.module is None:
        return
    one, two, own = subject.built(1), subject.built(2), _state(subject.module)
    for name, tensor in one.items():
        constant = _equal(tensor, two[name]) and not (tensor.is_floating_point() and tensor.sum().isnan())
        if constant and not _equal(tensor.to(own[name]), own[name]):
            got = f"`{name}`, whose value set in `modules` is lost: `reset_parameters` draws another"
            yield problem(LOST_VALUE, subject.component.name, "modules", subject.component, got)


def _equal(a: Tensor, b: Tensor) -> bool:
    """Returns whether tensors are equal; soon, if they are large and differ at once."""
    return torch.equal(a.flatten()[:1000], b.flatten()[:1000]) and torch.equal(a, b)


CHECKS: tuple[Check[ModuleSubject], ...] = (own_module, unregistered, uninitialised, not_finite, lost_values)
