"""A CUDA device that is not there: tensors without values on "cuda", and the rules of its kernels.

All code between the kernels runs, with the shapes, strides and number formats of a real run. What needs a value
of the device raises, as it would make the host wait. Kernels only promise shapes, so what they refuse on a real
device is checked by `Rules`.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from unittest import mock

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode, unset_fake_temporarily
from torch.utils._python_dispatch import TorchDispatchMode

from lmmkit.attention import trial
from lmmkit.attention.xformers_backend import loaded
from lmmkit.model import vision


@contextmanager
def fake_cuda() -> Iterator[Rules]:
    """Makes a card with the capabilities of an H100 within the block, and yields the calls of its kernels."""
    numpy, scheduled = torch.Tensor.numpy, vision.among_images

    def on_host(lengths):
        with unset_fake_temporarily():
            return scheduled(lengths)

    def of_host(tensor: Tensor, **kwargs):
        with unset_fake_temporarily():
            return numpy(tensor, **kwargs)

    trial.refusal.cache_clear()
    try:
        with (
            mock.patch("torch.cuda.get_device_capability", lambda *_: (9, 0)),
            mock.patch("torch.cuda.is_bf16_supported", lambda *_: True),
            mock.patch("torch.cuda.amp.common.amp_definitely_not_available", lambda: False),
            mock.patch.object(torch.Tensor, "numpy", of_host),
            mock.patch.object(vision, "among_images", on_host),
            mock.patch.object(trial, "_difference", _same_shape),
            mock.patch.object(torch.autograd, "grad", gradients),
            _xformers_without_pinned_memory(),
            FakeTensorMode(allow_non_fake_inputs=True),
            Rules() as rules,
        ):
            yield rules
    finally:
        trial.refusal.cache_clear()


@contextmanager
def on_card(*modules: nn.Module) -> Iterator[Rules]:
    """Moves modules to a card as `fake_cuda`, and yields its rules: what they list begins within the block."""
    with fake_cuda() as rules:
        for module in modules:
            module.to("cuda")
        rules.waited.clear()
        yield rules


def _xformers_without_pinned_memory() -> AbstractContextManager:
    def unpinned(values, dtype: torch.dtype, device: torch.device) -> Tensor:
        return torch.tensor(values, dtype=dtype).to(device, non_blocking=True)

    if loaded().problem:
        return nullcontext()
    return mock.patch("xformers.ops.fmha.attn_bias._to_device_tensor", unpinned)


def _same_shape(got: Tensor, want: Tensor) -> float:
    return 0.0 if got.shape == want.shape else float("inf")


def gradients(outputs, inputs, grad_outputs) -> tuple[Tensor | None, ...]:
    """Runs the nodes of a graph from Python: torch's engine asks the driver for streams."""
    outputs, inputs, grad_outputs = (
        (x,) if isinstance(x, Tensor) else tuple(x) for x in (outputs, inputs, grad_outputs)
    )
    waiting: dict[object, dict[int, Tensor]] = defaultdict(dict)
    for out, grad in zip(outputs, grad_outputs, strict=True):
        assert out.shape == grad.shape and out.dtype == grad.dtype
        waiting[out.grad_fn][out.output_nr] = grad
    found = {}
    for node in reversed(_sorted({out.grad_fn for out in outputs})):
        grads = [waiting[node].get(i) for i in range(len(node._input_metadata))]
        if hasattr(node, "variable"):
            found[id(node.variable)] = grads[0]
            continue
        results = node.apply(*grads) if hasattr(node, "apply") else node(*grads)
        results = results if isinstance(results, tuple) else (results,)
        for (to, index), grad in zip(node.next_functions, results, strict=False):
            if to is not None and grad is not None:
                grad = grad.to(to._input_metadata[index].dtype).sum_to_size(to._input_metadata[index].shape)
                before = waiting[to].get(index)
                waiting[to][index] = grad if before is None else before + grad
    return tuple(found.get(id(each)) for each in inputs)


def _sorted(nodes: Iterable[object]) -> list:
    """Returns all nodes behind these, each after those that it leads to."""
    done: dict[object, None] = {}

    def visit(node) -> None:
        if node is not None and node not in done:
            for to, _ in node.next_functions:
                visit(to)
            done[node] = None

    for node in nodes:
        visit(node)
    return list(done)


class Rules(TorchDispatchMode):
    """Refuses what the kernels of a card refuse. Lists the attention kernels that are called, and copies to the
    device for which the host waits."""

    def __init__(self):
        super().__init__()
        self.called: list[str] = []
        self.waited: list[str] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func.__name__.partition(".")[0]
        if name == "_to_copy":
            self._check_copy(args[0], **kwargs)
        if name in _RULES:
            given = {a.name: value for a, value in zip(func._schema.arguments, args, strict=False)}
            _RULES[name](**given, **(kwargs or {}))
            self.called.append(name)
        return func(*args, **(kwargs or {}))

    def _check_copy(self, given: Tensor, device=None, non_blocking: bool = False, **others) -> None:
        to = torch.device(device or given.device)
        if given.is_cuda and to.type == "cpu":
            raise RuntimeError("a copy to the host waits for the device")
        if not given.is_cuda and to.type == "cuda" and not non_blocking:
            self.waited.append(f"a copy of {tuple(given.shape)} to the device")


def _segments(query, key, value, cum_seq_q, cum_seq_k, max_q, max_k, **others) -> None:
    """Checks what FA2's variable-length kernels ask for."""
    assert query.dtype == key.dtype == value.dtype and query.dtype in (torch.bfloat16, torch.float16), (
        query.dtype
    )
    assert query.ndim == key.ndim == 3 and key.shape == value.shape
    assert query.shape[1] % key.shape[1] == 0
    if query.shape[2] % 8 or query.shape[2] > 256:
        raise RuntimeError("head_size should be a multiple of 8, and at most 256")
    assert all(x.stride(-1) == 1 for x in (query, key, value))
    assert all(x.dtype == torch.int32 and x.is_cuda for x in (cum_seq_q, cum_seq_k))
    assert cum_seq_q.shape == cum_seq_k.shape and max_q > 1 and max_k > 1
    if "logsumexp" in others:
        lse_HQ, same = others["logsumexp"], (others["grad_out"], others["out"])
        assert lse_HQ.shape == (query.shape[1], len(query)) and lse_HQ.is_contiguous()
        assert lse_HQ.dtype == torch.float32
        assert all(x.shape == query.shape and x.dtype == query.dtype and x.stride(-1) == 1 for x in same)
        assert others["rng_state"].is_cuda and others["unused"].is_cuda


def _efficient(query, key, value, **others) -> None:
    """Checks what the memory-efficient kernel asks for."""
    assert query.dtype == key.dtype == value.dtype
    assert query.shape[1] == key.shape[1] and key.shape == value.shape
    if query.shape[-1] % (4 if query.dtype == torch.float32 else 8):
        raise RuntimeError("query is not correctly aligned")
    assert all(x.stride(-1) == 1 for x in (query, key, value))
    if "logsumexp" in others:
        lse_BHN, n = others["logsumexp"], query.shape[2]
        assert lse_BHN.shape == (*query.shape[:2], n + -n % 32) and lse_BHN.dtype == torch.float32
        assert lse_BHN.stride(-1) == 1, "logsumexp must have contiguous last dimension"
        grad = others["grad_out_"]
        assert grad.shape == query.shape and grad.dtype == query.dtype and grad.stride(-1) == 1


_RULES = {
    "_flash_attention_forward": _segments,
    "_flash_attention_backward": _segments,
    "_scaled_dot_product_efficient_attention": _efficient,
    "_scaled_dot_product_efficient_attention_backward": _efficient,
}
