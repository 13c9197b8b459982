"""Every backend against the row-by-row twin in float64: outputs, mass and all gradients."""

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from lmmkit.attention.backends import Flash, NoBackend, Sdpa, Xformers, all_backends, choose, log_choice
from lmmkit.attention.eager import Eager
from lmmkit.attention.forest import roots
from lmmkit.attention.interface import Heads
from lmmkit.attention.schedule import AttentionSpec
from lmmkit.attention.trial import Conditions
from tests.support import plain_twins
from tests.support.attention_cases import (  # fmt: skip
    CASES,
    CPU,
    CUDA,
    HEADS,
    SIZE,
    TIGHT,
    Case,
    Found,
    assert_close,
    branches,
    inputs,
    marks,
    of_backend,
    of_twin,
    packed,
    unturned,
)
from tests.support.plain_twins import off
from tests.support.random_forests import concat, permuted


@pytest.mark.parametrize("groups", [1, 2, 4])
@pytest.mark.parametrize("name", CASES)
def test_value_mass_and_gradient_equal_the_twin(name, groups):
    case = CASES[name]()
    given = inputs(len(case.forest), groups)
    want = of_twin(case, given)
    for backend in (Sdpa(), Eager()):
        for dtype, limit in TIGHT.items():
            assert_close(of_backend(backend, case, given, dtype), want, limit)


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("backend", [Sdpa(), Eager()], ids=lambda b: b.name)
def test_rows_that_are_not_read_may_be_left_out(backend, name):
    """Compares the rows that come out, and their gradients, with those of the whole call."""
    case = CASES[name]()
    given, draw = inputs(len(case.forest), 2), torch.Generator().manual_seed(3)
    read_T = torch.rand(len(case.forest), generator=draw) < 0.2
    unread_R = (~read_T).nonzero()[:, 0]
    whole = of_backend(backend, case._replace(dead_R=unread_R), given, torch.float64)
    attention_fn = backend.prepare(case.attention(read_T), CPU)
    rows = attention_fn.rows
    assert set(rows.tolist()) >= set(read_T.nonzero()[:, 0].tolist()) | set(case.row_R.tolist())
    q, k, v = (x.clone().requires_grad_() for x in given[:3])
    out, mass = unturned(attention_fn)(q, k, v)
    d_out = given[3].index_fill(0, unread_R, 0)[rows]
    gradients = torch.autograd.grad([out, mass], [q, k, v], [d_out, given[4][case.row_R]])
    got = Found(out, mass, *gradients)
    assert_close(got, whole._replace(out=whole.out[rows]), 1e-12)


@pytest.mark.parametrize("backend", [Sdpa(), Eager()], ids=lambda b: b.name)
def test_a_run_is_computed_from_the_first_row_that_is_read(backend):
    forest, none = roots([100, 50]), torch.arange(0)
    read_T = marks(150, [70, 90])
    attention_fn = backend.prepare(AttentionSpec(forest, marks(150), none, read_T), CPU)
    assert attention_fn.rows.tolist() == list(range(70, 100))


@pytest.mark.parametrize("groups", [1, 4])
def test_turning_in_place_is_turning(groups):
    forest, given = roots([30]), inputs(30, groups)
    angle_T1K = torch.randn(30, 1, SIZE // 2, generator=torch.Generator().manual_seed(1)).double()
    heads, rotary = Heads(HEADS, groups, SIZE), (angle_T1K.cos(), angle_T1K.sin())
    key_T, row_R, found = marks(30, range(9)), torch.arange(9, 30), []
    for backend in (Sdpa(), Eager()):
        qkv_TC = torch.cat(given[:3], 1).flatten(1).requires_grad_()
        out_TC, mass_R = backend.prepare(AttentionSpec(forest, key_T, row_R), CPU)(
            qkv_TC.clone(), heads, rotary
        )
        (out_TC * given[3].flatten(1)).sum().add(mass_R @ given[4][row_R]).backward()
        found.append((out_TC, mass_R, qkv_TC.grad))
    for ours, plain in zip(*found, strict=True):
        assert off(ours, plain) < 1e-12


def test_eager_and_sdpa_give_mass_in_float32_or_wider():
    case = packed()
    for backend in (Sdpa(), Eager()):
        for dtype, wide in ((torch.bfloat16, torch.float32), (torch.float64, torch.float64)):
            assert of_backend(backend, case, inputs(49, 2), dtype).mass.dtype == wide


def test_mass_of_rows_that_see_only_image_is_one_and_of_rows_that_see_none_is_zero():
    forest = roots([6, 4])
    attention_fn = Sdpa().prepare(AttentionSpec(forest, marks(10, range(6)), torch.arange(10)), CPU)
    mass = unturned(attention_fn)(*inputs(10, 2)[:3])[1]
    assert mass.tolist() == pytest.approx([1.0] * 6 + [0.0] * 4, abs=1e-14)


def test_without_an_asked_row_there_is_no_cut_and_an_empty_mass():
    forest, key_T = roots([30]), marks(30, range(5, 9))
    spec = AttentionSpec(forest, key_T, torch.arange(0))
    assert len(spec.calls) == 1
    attention_fn = Sdpa().prepare(spec, CPU)
    assert unturned(attention_fn)(*inputs(30, 2)[:3])[1].shape == (0,)


@pytest.mark.parametrize("scale", [1e-6, 1e-12])
def test_gradients_are_as_exact_however_small_they_are(scale):
    case = CASES["ragged branches"]()
    given = inputs(len(case.forest), 2)
    want = of_twin(case, given)
    for dtype, limit in TIGHT.items():
        got = of_backend(Sdpa(), case, [*given[:3], *(scale * d for d in given[3:])], dtype)
        assert_close(Found(got.out, got.mass, *(d / scale for d in got[2:])), want, limit)


@pytest.mark.parametrize("name", ["ragged branches", "packing", "random 3"])
def test_permuting_rows_changes_nothing(name):
    case, groups = CASES[name](), 2
    given = inputs(len(case.forest), groups)
    order = torch.randperm(len(case.forest), generator=torch.Generator().manual_seed(1))
    place = order.argsort()
    row_R = place[case.row_R]
    moved = Case(permuted(case.forest, order), case.key_T[order], row_R, place[case.dead_R])
    want = of_backend(Sdpa(), case, given, torch.float64)
    got = of_backend(Sdpa(), moved, [x[order] for x in given], torch.float64)
    back = Found(got.out[place], got.mass, *(d[place] for d in got[2:]))
    assert_close(back, want, 1e-12)


def test_a_shared_prefix_gives_what_each_sequence_gives_alone():
    case = CASES["ragged branches"]()
    paths = branches(12, 1, 20, 6)[1]
    given = inputs(len(case.forest), 2)
    out, mass, *_ = of_backend(Sdpa(), case, given, torch.float64)
    mass_T = torch.full((len(case.forest),), torch.nan, dtype=torch.float64).index_copy(0, case.row_R, mass)
    for path in map(torch.from_numpy, paths):
        alone, map_THT = plain_twins.attention(*(x[path] for x in given[:3]), plain_twins.causal(len(path)))
        assert off(out[path], alone) < 1e-12
        read = (~mass_T[path].isnan()).nonzero()[:, 0]
        assert off(mass_T[path][read], plain_twins.mass(map_THT, case.key_T[path], read)) < 1e-12


class NoMap(TorchDispatchMode):
    """Fails on any tensor with as many numbers as a map of T rows."""

    def __init__(self, T: int):
        super().__init__()
        self.most, self.seen = T * T, 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        sizes = [x.numel() for x in tree_leaves(out) if isinstance(x, Tensor)]
        self.seen = max([self.seen, *sizes])
        assert self.seen < self.most, f"{func} makes {self.seen} numbers"
        return out


def test_sdpa_allocates_no_map_and_eager_does():
    T = 2000
    forest = concat([roots([1000]), branches(400, 300, 300)[0]])
    case = Case(
        forest, marks(T, range(10, 300), range(1010, 1300)), torch.arange(300, T), torch.arange(1900, T)
    )
    given = inputs(T, 1)
    with NoMap(T) as watch:
        of_backend(Sdpa(), case, given, torch.float32)
    assert watch.seen >= T * HEADS * SIZE
    with pytest.raises(AssertionError, match="numbers"), NoMap(T):
        Eager().prepare(case.attention(), CPU)


def test_dense_attention_is_the_twins_without_a_mask():
    q, k, v = (x.view(3, 7, HEADS, SIZE) for x in inputs(21, HEADS)[:3])
    all_ = torch.ones(7, 7, dtype=torch.bool)
    want = torch.stack([plain_twins.attention(*qkv, all_)[0] for qkv in zip(q, k, v, strict=True)])
    for backend in (Sdpa(), Eager()):
        assert off(backend.dense(q, k, v), want) < 1e-12


FLOAT32 = Conditions(CPU, torch.float32)


def test_auto_on_a_cpu_is_sdpa_and_says_why_not_those_before(caplog):
    with caplog.at_level("INFO", logger="lmmkit"):
        chosen = choose("auto", FLOAT32)
        log_choice(chosen, FLOAT32)
    assert chosen == Sdpa()
    assert "attention: sdpa (xformers: no kernels for cpu; flash: no kernels for cpu)" in caplog.text


def test_a_backend_asked_for_by_name_is_taken_or_says_why_not():
    assert choose("eager", FLOAT32) == Eager()
    with pytest.raises(NoBackend, match="xformers`, which cannot run on cpu") as error:
        choose("xformers", FLOAT32)
    reasons = "(xformers: no kernels for cpu; flash: no kernels for cpu; sdpa: can run; eager: can run)"
    assert reasons in str(error.value)


def test_an_unknown_backend_is_reported_with_the_known_ones():
    with pytest.raises(NoBackend, match=r"`nonsense`, which is no backend .*eager: can run"):
        choose("nonsense", FLOAT32)


def test_reasons_name_device_and_type():
    assert all_backends() == (Xformers(), Flash(), Sdpa(), Eager())
    assert "meta" in Sdpa().why_not(torch.device("meta"), torch.float32)
    assert "float64" in Sdpa().why_not(CUDA, torch.float64)
    assert "float64" in Xformers().why_not(CUDA, torch.float64)
    assert Eager().why_not(torch.device("meta"), torch.float64) == ""
