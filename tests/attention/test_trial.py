"""The trial that decides whether a backend runs: on the CPU, and on a card that is not there (fake_cuda)."""

from dataclasses import dataclass, field
from unittest import mock

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import DataDependentOutputException, DynamicOutputShapeException

from lmmkit.attention import trial
from lmmkit.attention.backends import Flash, NoBackend, Sdpa, Xformers, choose, log_choice
from lmmkit.attention.eager import Eager
from lmmkit.attention.forest import roots
from lmmkit.attention.interface import AttentionFn, Heads
from lmmkit.attention.schedule import AttentionSpec
from lmmkit.attention.trial import Conditions, refusal
from lmmkit.attention.xformers_backend import loaded
from tests.support.attention_cases import CPU, CUDA
from tests.support.fake_cuda import fake_cuda, gradients

BF16 = Conditions(CUDA, torch.bfloat16, Heads(4, 2, 64), Heads(3, 3, 72))
needs_xformers = pytest.mark.skipif(bool(loaded().problem), reason="xformers does not import")
ON_A_CARD = [pytest.param(Xformers(), marks=needs_xformers), Flash(), Sdpa(), Eager()]


@pytest.mark.parametrize("at", [
    Conditions(CPU, torch.float32), Conditions(CPU, torch.bfloat16, Heads(4, 1, 16), Heads(2, 2, 24)),
    Conditions(CPU, torch.float64, Heads(4, 2, 6), deterministic=True),
])  # fmt: skip
def test_sdpa_and_eager_run_on_a_cpu(at):
    assert [refusal(backend, at) for backend in (Sdpa(), Eager())] == ["", ""]
    assert refusal(Flash(), at) == refusal(Xformers(), at) == "no kernels for cpu"


@dataclass(frozen=True)
class Odd:
    """Eager, of which the results are changed."""

    change: object
    name: str = "odd"
    tried: list = field(default_factory=list, hash=False, compare=False)

    def why_not(self, device, dtype) -> str:
        return ""

    def prepare(self, spec: AttentionSpec, device: torch.device) -> AttentionFn:
        self.tried.append(spec)
        plain = Eager().prepare(spec, device)
        return AttentionFn(plain.rows, lambda *given: self.change(*plain(*given)))

    def dense(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return self.change(Eager().dense(q, k, v), None)[0]


def raises(*_):
    raise NotImplementedError("no kernel for heads like these\n  query : [3, 4]\n  because they are odd")


@pytest.mark.parametrize(("change", "reason"), [
    (lambda out, mass: (out, mass), ""),
    (lambda out, mass: (out * 1.5, mass), "its results are off by 50% of the largest value"),
    (lambda out, mass: (out, mass if mass is None else mass.flip(0)), "its results are off by"),
    (lambda out, mass: (out * torch.nan, mass), "its results are off by inf%"),
    (lambda out, mass: (out.detach() + 0 * out, mass), "its results are off by"),
    (raises, "no kernel for heads like these because they are odd"),
])  # fmt: skip
def test_a_backend_is_refused_if_it_fails_or_if_its_results_are_not_those_of_eager(change, reason):
    backend = Odd(change)
    at = Conditions(CPU, torch.float32, encoder=Heads(2, 2, 8))
    assert refusal(backend, at).startswith(reason) and bool(refusal(backend, at)) == bool(reason)
    assert len(backend.tried) == 1  # the second answer is remembered
    assert refusal(backend, at._replace(decoder=Heads(1, 1, 32))).startswith(reason)
    assert len(backend.tried) == 2


@pytest.mark.parametrize(
    "error", [MemoryError(), torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 MiB")]
)
def test_too_little_memory_says_nothing_about_a_backend(error):
    full = [error]

    def fails_once(out, mass):
        if full:
            raise full.pop()
        return out, mass

    backend, at = Odd(fails_once), Conditions(CPU, torch.float32)
    with pytest.raises(type(error)):
        refusal(backend, at)
    assert refusal(backend, at) == "" and len(backend.tried) == 2, "it is tried again"


def test_packed_images_are_tried_as_such():
    backend = Odd(lambda out, mass: (out, mass))
    at = Conditions(CPU, torch.float32, encoder=Heads(2, 2, 8), packed_images=True)
    assert refusal(backend, at) == ""
    assert [len(spec.row_R) > 0 for spec in backend.tried] == [True, False]
    assert [call.causal for call in backend.tried[1].calls] == [False]
    wrong = Odd(lambda out, mass: (out * 1.5 if mass is not None and not len(mass) else out, mass))
    assert refusal(wrong, at._replace(packed_images=False)) == "" != refusal(wrong, at)


def test_an_encoder_alone_may_be_what_a_backend_cannot_run():
    @dataclass(frozen=True)
    class Undense(Odd):
        def dense(self, q, k, v):
            raise RuntimeError("x" * 2000)

    backend = Undense(lambda out, mass: (out, mass))
    assert refusal(backend, Conditions(CPU, torch.float32)) == ""
    reason = refusal(backend, Conditions(CPU, torch.float32, encoder=Heads(2, 2, 8)))
    assert reason == "x" * trial.LONGEST + " ..."


def test_a_trial_leaves_no_trace_and_needs_no_certain_place():
    state = torch.random.get_rng_state()
    at = Conditions(CPU, torch.float32, Heads(2, 1, 40), Heads(2, 2, 40), deterministic=True)
    with torch.inference_mode(), torch.device("meta"), torch.autocast("cpu", torch.bfloat16):
        assert refusal(Sdpa(), at) == ""
    assert (torch.random.get_rng_state() == state).all()
    assert not torch.are_deterministic_algorithms_enabled()


@pytest.mark.parametrize("deterministic", [False, True])
@pytest.mark.parametrize("backend", ON_A_CARD, ids=lambda b: b.name)
def test_on_a_card_all_run_in_bfloat16_and_all_but_xformers_deterministically(backend, deterministic):
    with fake_cuda() as rules:
        reason = refusal(backend, BF16._replace(deterministic=deterministic))
    if backend == Xformers() and deterministic:
        assert "operator is non-deterministic" in reason
        return
    assert reason == ""
    kernel = {
        Flash(): "_flash_attention_backward",
        Sdpa(): "_scaled_dot_product_efficient_attention_backward",
    }
    assert backend not in kernel or kernel[backend] in rules.called


@pytest.mark.parametrize(("size", "flash", "sdpa"), [
    (12, "multiple of 8", "not correctly aligned"), (264, "at most 256", ""), (256, "", ""), (8, "", ""),
])  # fmt: skip
def test_on_a_card_head_sizes_that_a_kernel_lacks_are_reasons(size, flash, sdpa):
    at = BF16._replace(decoder=Heads(2, 1, size))
    with fake_cuda():
        for backend, reason in ((Flash(), flash), (Sdpa(), sdpa), (Eager(), "")):
            assert reason in refusal(backend, at) and bool(reason) == bool(refusal(backend, at))


def test_on_a_card_packed_images_need_a_kernel_for_the_heads_of_the_encoder():
    """Takes heads for which there is dense attention on any card, here that of `eager`, but no packed kernel."""
    at = BF16._replace(encoder=Heads(2, 2, 12))
    packed, calls = at._replace(packed_images=True), []
    with fake_cuda() as rules:
        for tried in (BF16, BF16._replace(packed_images=True)):
            rules.called.clear()
            assert refusal(Flash(), tried) == ""
            calls.append(rules.called.count("_flash_attention_backward"))
        assert calls[1] == calls[0] + 1, "one call for all images"
        with mock.patch.object(Sdpa, "dense", Eager.dense):
            assert [refusal(backend, at) for backend in (Flash(), Sdpa(), Eager())] == ["", "", ""]
            reasons = [refusal(backend, packed) for backend in (Flash(), Sdpa(), Eager())]
    assert "multiple of 8" in reasons[0] and "not correctly aligned" in reasons[1] and reasons[2] == ""


@needs_xformers
def test_auto_on_a_card_takes_the_first_that_ran_and_logs_why_not_the_others(caplog):
    with fake_cuda(), caplog.at_level("INFO", logger="lmmkit"):
        for at in (BF16, BF16._replace(deterministic=True), BF16._replace(decoder=Heads(2, 2, 12))):
            log_choice(choose("auto", at), at)
        with pytest.raises(
            NoBackend, match=r"`xformers`, which cannot run on cuda.*non-deterministic.*sdpa: can run"
        ):
            choose("xformers", BF16._replace(deterministic=True))
        with pytest.raises(
            NoBackend, match=r"`flash`, which cannot run on cuda in torch\.float32.*flash: no kernel"
        ):
            choose("flash", Conditions(CUDA, torch.float32))
    first, second, third = caplog.records
    assert first.message == "attention: xformers"
    assert second.message.startswith("attention: flash (xformers: No operator found")
    assert third.message.startswith("attention: eager (xformers:") and "flash: head_size" in third.message
    assert [record.levelname for record in caplog.records] == ["INFO", "INFO", "WARNING"]


RUNS = [
    pytest.param(
        backend, dtype, deterministic, id=f"{backend.name}-{dtype}-{deterministic}",
        marks=needs_xformers if backend == Xformers() else (),
    )
    for backend in (Xformers(), Flash(), Sdpa(), Eager())
    for dtype in (torch.bfloat16, torch.float32)
    for deterministic in (False, True)
    if not (backend == Flash() and dtype == torch.float32)  # it has no such kernel
    # nor has xformers a deterministic one; its float32 kernel takes no tensors without values
    and not (backend == Xformers() and (deterministic or dtype == torch.float32))
]  # fmt: skip


@pytest.mark.parametrize("lengths", [(31,), (32,), (64, 64, 64), (576,), (576, 32, 9), (1, 1, 1), ()])
@pytest.mark.parametrize(("backend", "dtype", "deterministic"), RUNS)
def test_on_a_card_no_layer_waits_for_the_device_at_any_length(backend, dtype, deterministic, lengths):
    """Runs the parts of the last layer too, which have other lengths: its rows are those that are read."""
    T, heads, row_T = sum(lengths), Heads(4, 2, 64), torch.arange(sum(lengths))
    asks, keys, read_T = row_T[-9:], (row_T >= 3) & (row_T < 11), torch.zeros(T, dtype=torch.bool)
    read_T[torch.tensor(lengths, dtype=torch.int64).cumsum(0) - 1] = True
    specs = [AttentionSpec(roots(lengths), keys, asks, read) for read in (None, read_T)]
    with fake_cuda() as rules, trial.deterministic_kernels(deterministic):
        for spec in specs:
            attention_fn = backend.prepare(spec, CUDA)
            leaf = torch.randn(T, 8 * 64, device=CUDA, dtype=dtype, requires_grad=True)
            turn = torch.randn(T, 1, 32, device=CUDA)
            out, mass = attention_fn(leaf * 1, heads, (turn, turn))
            assert out.dtype == dtype and mass.dtype == torch.float32 and mass.shape == asks.shape
            (d,) = gradients([out, mass], leaf, [torch.ones_like(out), torch.ones_like(mass)])
            assert d.shape == leaf.shape and d.dtype == dtype
    assert bool(rules.called) == (backend in (Flash(), Sdpa()) and T > 0)


def test_the_card_that_is_not_there_refuses_what_makes_the_host_wait():
    with fake_cuda():
        x = torch.randn(4, device=CUDA)
        for wait in (lambda: x[x > 0], lambda: float(x.sum()), x.nonzero, x.cpu, x.tolist):
            with pytest.raises((DynamicOutputShapeException, DataDependentOutputException, RuntimeError)):
                wait()
