"""Finds a term that works on a CPU only: it is watched on one, as if what it is given were on a GPU.

A tensor that the term makes without a device is on the host; what it is given, and what it computes from that, is on
the device. `tensor.device` gives the device `cpu:0` for these, which torch takes for the CPU, and which differs from
the `cpu` of all others.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils import _pytree

from lmmkit.api.components import Component
from lmmkit.errors import Problem, UserError
from lmmkit.errors.dry_run import WRONG_DEVICE

DEVICE = torch.device("cpu", 0)
# what may have tensors of both places: copies, indices, and questions about one of them
BOTH = frozenset({
    "__getitem__", "__setitem__", "copy_", "to", "type_as", "__get__", "__set__", "size", "dim", "stride", "numel",
    "is_floating_point", "set_",
})  # fmt: skip
MOVES = ("to", "type_as", "cpu")
READ_BY_NUMPY = ("numpy", "__array__")


class WrongDevice(RuntimeError):
    """Reports that a plugin uses a tensor of the host with one of the device."""


class AsOnDevice(TorchFunctionMode):
    """Raises `WrongDevice` where a GPU would refuse what runs on a CPU. `host`: tensors made before."""

    def __init__(self, host: Iterable[Tensor] = ()):
        super().__init__()
        self.host: dict[int, Tensor] = {id(tensor): tensor for tensor in host}

    def __torch_function__(
        self, func: Callable, types: Any, args: tuple = (), kwargs: Mapping | None = None
    ) -> Any:
        kwargs, name = dict(kwargs or {}), getattr(func, "__name__", "")
        given = [x for x in _pytree.tree_leaves((args, kwargs)) if isinstance(x, Tensor)]
        on_host = [id(tensor) in self.host for tensor in given]
        if name == "__get__" and func == Tensor.device.__get__ and not on_host[0]:  # type: ignore[attr-defined]
            return DEVICE
        self._refuse(name, given, on_host, kwargs)
        found = func(*args, **kwargs)
        if name in MOVES and isinstance(found, Tensor):
            found = found.view_as(found)  # a tensor of its own: on a CPU nothing moves
        if self._makes_host(name, args, kwargs, on_host):
            self.host |= {id(x): x for x in _pytree.tree_leaves(found) if isinstance(x, Tensor)}
        return found

    def _refuse(self, name: str, given: list[Tensor], on_host: list[bool], kwargs: Mapping) -> None:
        arrays = {host for tensor, host in zip(given, on_host, strict=True) if tensor.ndim}
        if len(arrays) == 2 and name not in BOTH:
            raise WrongDevice(f"`{name}` of a tensor on the device and one on the host")
        if name in READ_BY_NUMPY and arrays == {False}:
            raise WrongDevice(f"`{name}` of a tensor on the device")
        on_device = (given and not all(on_host)) or kwargs.get("device") == DEVICE
        if isinstance(kwargs.get("generator"), torch.Generator) and on_device:
            raise WrongDevice(f"`{name}` on the device with a generator of the host")

    @staticmethod
    def _makes_host(name: str, args: tuple, kwargs: Mapping, on_host: list[bool]) -> bool:
        """Returns whether the result of a call is on the host."""
        places = [x for x in (*args, *kwargs.values()) if isinstance(x, torch.device)]
        if places or isinstance(kwargs.get("device"), str):
            return not places or places[-1] != DEVICE
        if name == "cpu" or (name == "to" and any(x == "cpu" for x in args[1:])):
            return True
        if name in MOVES and len(on_host) == 2:
            return on_host[1]
        return all(on_host)  # also of no tensor at all


def tensors_of_module(cls: type) -> Iterator[Tensor]:
    """Yields the tensors that a plugin's file, or its class, has made when it was loaded."""
    module = sys.modules.get(cls.__module__)
    for value in (*vars(module).values(), *vars(cls).values()) if module is not None else ():
        yield from (x for x in _pytree.tree_leaves(value) if isinstance(x, Tensor))


def watched(component: Component, host: Iterable[Tensor], call: Callable[[], object]) -> Iterator[Problem]:
    """Calls what computes with a component, as on a device but for the tensors in `host`."""
    try:
        with torch.no_grad(), AsOnDevice([*tensors_of_module(type(component)), *host]):
            call()
    except UserError as error:  # the guard has reported it, with its line
        if not isinstance(error.__cause__, WrongDevice):
            raise
        yield WRONG_DEVICE.at(error.problems[0].where, got=str(error.__cause__))
