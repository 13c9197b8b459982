"""Every backend against the row-by-row twin in float64: outputs, mass and all gradients."""

from typing import NamedTuple

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from lmmkit.forest import Forest, concat, grow, make, roots
from lmmkit.model import attention
from lmmkit.model.attention import Eager, Sdpa, Xformers, backends, choose
from tests import reference
from tests.forests import permuted, random_forest
from tests.reference import off, show

CPU = torch.device("cpu")
CUDA = torch.device("cuda")
TIGHT = {torch.float64: 1e-12, torch.float32: 5e-6}
HEADS, SIZE = 4, 8


class Case(NamedTuple):
    """A forest, the key rows of the mass, the rows that read it, and the rows without an output gradient."""

    forest: Forest
    key_T: Tensor
    row_R: Tensor
    dead_R: Tensor


def marks(total: int, *rows) -> Tensor:
    key_T = torch.zeros(total, dtype=torch.bool)
    for part in rows:
        key_T[torch.as_tensor(part)] = True
    return key_T


def case(forest: Forest, keys, reads, dead=()) -> Case:
    reads, dead = (torch.as_tensor(sorted({int(i) for i in r}), dtype=torch.int64) for r in (reads, dead))
    return Case(forest, marks(len(forest), *keys), reads, dead)


def branches(trunk: int, *tails: int) -> tuple[Forest, list]:
    keys = [[*range(trunk), *range(1000 * (i + 1), 1000 * (i + 1) + n)] for i, n in enumerate(tails)]
    return grow([[torch.tensor(k).numpy() for k in keys]])


def shared(trunk: int, image: slice, *tails: int) -> Case:
    """Branches behind an image of the trunk; every tail reads, and the last image row, which is shared."""
    forest, paths = branches(trunk, *tails)
    rows = list(range(len(forest)))
    tail_rows = [r for path in paths for r in path[trunk:]]
    return case(forest, [rows[image]], [rows[image][-1], *tail_rows], dead=[path[-1] for path in paths])


def packed() -> Case:
    """Three documents: text before the image; the image in the middle; no image."""
    forest = roots([17, 23, 9])
    return case(forest, [range(6, 12), range(17 + 5, 17 + 14)], [*range(12, 17), *range(32, 40), *range(41, 49)])


def random_case(seed: int) -> Case:
    forest = random_forest(seed, most=40)
    pick = torch.Generator().manual_seed(seed)
    share = torch.rand(3, len(forest), generator=pick)
    return case(forest, [(share[0] < 0.3).nonzero()[:, 0]], (share[1] < 0.5).nonzero(), (share[2] < 0.3).nonzero())


CASES = {
    "one document": lambda: case(roots([30]), [range(4, 14)], range(14, 30)),
    "packing": packed,
    "shared prefix": lambda: shared(12, slice(1, 12), 9, 9),
    "ragged branches": lambda: shared(12, slice(3, 12), 1, 20, 6),
    "text after the image in the trunk": lambda: shared(15, slice(2, 9), 5, 11),
    "many short branches": lambda: shared(6, slice(1, 6), *range(1, 9)),
    "no image": lambda: case(roots([11, 5]), [], range(3, 16)),
    "no response": lambda: case(roots([11, 5]), [range(1, 6)], []),
    "image first and alone": lambda: case(roots([6]), [range(6)], range(6), dead=[5]),
    "no output gradient at all": lambda: case(roots([20]), [range(3, 9)], range(9, 20), dead=range(20)),
    "bidirectional block": lambda: case(
        make([0, 1, 1, 1, 1, 5, 6], [7] * 7, range(7)), [range(2, 4)], [1, 3, 5, 6], dead=[6]
    ),
    **{f"random {i}": lambda i=i: random_case(i) for i in range(8)},
}


class Found(NamedTuple):
    out: Tensor
    mass: Tensor
    d_q: Tensor
    d_k: Tensor
    d_v: Tensor


def inputs(T: int, groups: int, seed: int = 0) -> list[Tensor]:
    """q, k, v, the gradients of output and mass of all rows, in float64."""
    draw = torch.Generator().manual_seed(seed)
    sizes = [(T, HEADS, SIZE), (T, groups, SIZE), (T, groups, SIZE), (T, HEADS, SIZE), (T,)]
    return [torch.randn(*size, generator=draw, dtype=torch.float64) for size in sizes]


def found(call, case: Case, given, dtype, device=CPU) -> Found:
    """Outputs, mass and gradients of `call(q, k, v)` in one backward pass."""
    q, k, v, d_out, d_mass = (x.to(device, dtype) for x in given)
    d_out = d_out.index_fill(0, case.dead_R.to(device), 0)
    q, k, v = (x.requires_grad_() for x in (q, k, v))
    out, mass = call(q, k, v)
    gradients = torch.autograd.grad([out, mass], [q, k, v], [d_out, d_mass[case.row_R.to(device)].to(mass)])
    return Found(out, mass, *gradients)


def of_backend(backend, case: Case, given, dtype, device=CPU) -> Found:
    return found(backend.attend(case.forest, case.key_T, case.row_R, device), case, given, dtype, device)


def of_twin(case: Case, given) -> Found:
    see = case.forest.see()

    def call(q, k, v):
        out, lines = reference.attention(q, k, v, see)
        return out, reference.mass(lines, case.key_T, case.row_R) + 0 * q.sum()

    return found(call, case, given, torch.float64)


def assert_close(got: Found, want: Found, limit: float) -> None:
    errors = {name: off(a, b) for name, a, b in zip(Found._fields, got, want, strict=True)}
    show(f"{got.out.dtype} out", errors["out"])
    show(f"{got.out.dtype} mass", errors["mass"])
    show(f"{got.out.dtype} gradients", max(errors["d_q"], errors["d_k"], errors["d_v"]))
    assert max(errors.values()) < limit, errors


@pytest.mark.parametrize("groups", [1, 2, 4])
@pytest.mark.parametrize("name", CASES)
def test_value_mass_and_gradient_equal_the_twin(name, groups):
    case = CASES[name]()
    given = inputs(len(case.forest), groups)
    want = of_twin(case, given)
    for backend in (Sdpa(), Eager()):
        for dtype, limit in TIGHT.items():
            assert_close(of_backend(backend, case, given, dtype), want, limit)


def test_eager_and_sdpa_give_mass_in_float32_or_wider():
    case = packed()
    for backend in (Sdpa(), Eager()):
        for dtype, wide in ((torch.bfloat16, torch.float32), (torch.float64, torch.float64)):
            assert of_backend(backend, case, inputs(49, 2), dtype).mass.dtype == wide


def test_mass_of_rows_that_see_only_image_is_one_and_of_rows_that_see_none_is_zero():
    forest = roots([6, 4])
    attend = Sdpa().attend(forest, marks(10, range(6)), torch.arange(10), CPU)
    mass = attend(*inputs(10, 2)[:3])[1]
    assert mass.tolist() == pytest.approx([1.0] * 6 + [0.0] * 4, abs=1e-14)


def test_without_an_asked_row_there_is_no_cut_and_an_empty_mass():
    forest, key_T = roots([30]), marks(30, range(5, 9))
    assert len(attention._calls(forest, key_T, torch.tensor([], dtype=torch.int64))) == 1
    assert Sdpa().attend(forest, key_T, torch.arange(0), CPU)(*inputs(30, 2)[:3])[1].shape == (0,)


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
        alone, lines = reference.attention(*(x[path] for x in given[:3]), reference.causal(len(path)))
        assert off(out[path], alone) < 1e-12
        read = (~mass_T[path].isnan()).nonzero()[:, 0]
        assert off(mass_T[path][read], reference.mass(lines, case.key_T[path], read)) < 1e-12


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
    case = Case(forest, marks(T, range(10, 300), range(1010, 1300)), torch.arange(300, T), torch.arange(1900, T))
    given = inputs(T, 1)
    with NoMap(T) as watch:
        of_backend(Sdpa(), case, given, torch.float32)
    assert watch.seen >= T * HEADS * SIZE
    with pytest.raises(AssertionError, match="numbers"), NoMap(T):
        Eager().attend(forest, case.key_T, case.row_R, CPU)


def test_dense_attention_is_the_twins_without_a_mask():
    q, k, v = (x.view(3, 7, HEADS, SIZE) for x in inputs(21, HEADS)[:3])
    all_ = torch.ones(7, 7, dtype=torch.bool)
    want = torch.stack([reference.attention(*qkv, all_)[0] for qkv in zip(q, k, v, strict=True)])
    for backend in (Sdpa(), Eager()):
        assert off(backend.dense(q, k, v), want) < 1e-12


def test_decoding_gathers_the_rows_its_mask_names():
    q, k, v, *_ = inputs(12, 2)
    key_QM = torch.tensor([[0, 3, 4, 9], [0, 0, 7, 10]])
    seen_QM = torch.tensor([[True] * 4, [False, True, True, True]])
    got = attention.gathered(q[:2], k, v, key_QM, seen_QM)
    for i in range(2):
        rows = key_QM[i][seen_QM[i]]
        see = torch.ones(1, len(rows), dtype=torch.bool)
        assert off(got[i : i + 1], reference.attention(q[i : i + 1], k[rows], v[rows], see)[0]) < 1e-12


# ---------------------------------------------------------------- xformers


def xformers_parts(case: Case) -> list:
    parts = []
    for call, keys in attention._calls(case.forest, case.key_T, case.row_R):
        for key in sorted(set(keys)):
            members = [i for i, own in enumerate(keys) if own is key]
            parts.append(attention.pack(call, members, key, CPU))
    return parts


@pytest.mark.skipif(bool(attention.WHY_NO_XFORMERS), reason=attention.WHY_NO_XFORMERS or "xformers is here")
@pytest.mark.parametrize("name", CASES)
def test_xformers_biases_materialised_are_the_rule(name):
    case = CASES[name]()
    times = torch.zeros(len(case.forest), len(case.forest), dtype=torch.int64)
    for part in xformers_parts(case):
        bias = part.bias.materialize((len(part.row_Q), len(part.row_K)))
        assert set(bias.unique().tolist()) <= {0.0, -torch.inf}
        times[part.row_Q[:, None], part.row_K] += (bias == 0).long()
        assert (case.key_T[part.row_K] == part.key).all() or not len(case.row_R)
    assert (times == case.forest.see().long()).all()


gpu = pytest.mark.gpu
needs_cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")


@gpu
@needs_cuda
@pytest.mark.parametrize("backend", [Xformers(), Sdpa()], ids=lambda b: b.name)
@pytest.mark.parametrize("name", CASES)
def test_cuda_float32_equals_the_twin(name, backend, monkeypatch):
    monkeypatch.setattr(torch.backends.cuda.matmul, "allow_tf32", False)
    case = CASES[name]()
    given = inputs(len(case.forest), 2)
    assert_close(of_backend(backend, case, given, torch.float32, CUDA), of_twin(case, given), 5e-6)


@gpu
@needs_cuda
@pytest.mark.parametrize("backend", [Xformers(), Sdpa()], ids=lambda b: b.name)
@pytest.mark.parametrize("name", ["packing", "ragged branches", "random 1", "random 2"])
def test_cuda_bfloat16_errs_no_more_than_eager_in_bfloat16(name, backend):
    case = CASES[name]()
    given = [x.bfloat16().double() for x in inputs(len(case.forest), 2)]
    want = of_twin(case, given)
    got, plain = (of_backend(b, case, given, torch.bfloat16, CUDA) for b in (backend, Eager()))
    for field, ours, peer, exact in zip(Found._fields, got, plain, want, strict=True):
        assert off(ours, exact) <= 1.2 * off(peer, exact) + 1e-6, field


# ---------------------------------------------------------------- the choice


def test_auto_on_a_cpu_is_sdpa_and_says_why_not_xformers(caplog):
    with caplog.at_level("INFO", logger="lmmkit"):
        assert choose("auto", CPU, torch.float32) == Sdpa()
    assert "attention: sdpa (xformers: no kernels for cpu)" in caplog.text


def test_a_backend_asked_for_by_name_is_taken_or_says_why_not():
    assert choose("eager", CPU, torch.float32) == Eager()
    with pytest.raises(RuntimeError, match=r"runs on cpu in torch\.float32: xformers: no kernels for cpu"):
        choose("xformers", CPU, torch.float32)


def test_reasons_name_device_and_type():
    assert [b.name for b in backends()] == ["xformers", "sdpa", "eager"]
    assert "meta" in Sdpa().why_not(torch.device("meta"), torch.float32)
    assert "float64" in Sdpa().why_not(CUDA, torch.float64)
    assert "float64" in Xformers().why_not(CUDA, torch.float64)
    assert Eager().why_not(torch.device("meta"), torch.float64) == ""
