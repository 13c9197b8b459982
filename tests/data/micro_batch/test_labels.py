"""Labels of views: what comes as one tensor, what as a `Ragged`, and what is refused by name."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import pytest
import torch

from lmmkit.api import Ctx, HiddenAt, HiddenMean, Loss, Ragged, Sample, Select, View
from lmmkit.api.batch import RowGather
from lmmkit.data.micro_batch.labels import item_labels, join_labels
from lmmkit.data.pipeline import cut
from lmmkit.data.step_transfer import from_block, to_block
from lmmkit.errors import UserError
from lmmkit.plan.explain import label_text
from tests.support import paper_objective
from tests.support.tiny_model import SPEC, pack

IMAGES = Select(kind="image")


def views(*labels, name="task"):
    """Returns a view of a task for each of these values of the label `x`."""
    made = [{} if label is None else {"x": label} for label in labels]
    return [View(sample=Sample(key=f"s{i}", turns=()), name=name, labels=x) for i, x in enumerate(made)]


@pytest.mark.parametrize(
    ("values", "want"),
    [
        ((3, 4), torch.tensor([3, 4])), ((0.5, 2.0), torch.tensor([0.5, 2.0])), ((True, False), torch.tensor([True, False])),
        ((np.arange(3), np.arange(3) + 1), torch.tensor([[0, 1, 2], [1, 2, 3]])),
        ((torch.ones(2, 2), torch.zeros(2, 2).double()), torch.stack([torch.ones(2, 2), torch.zeros(2, 2)])),
        (((0.25, 1.0), (0.5, 2.0)), torch.tensor([[0.25, 1.0], [0.5, 2.0]])), ((np.float64(0.1), 0.2), torch.tensor([0.1, 0.2])),
        ((np.int32(3), 4), torch.tensor([3, 4])), ((torch.tensor(3, requires_grad=False), 4), torch.tensor([3, 4])),
    ],
)  # fmt: skip
def test_labels_of_equal_shape_are_stacked(values, want):
    found = join_labels(views(*values))["task/x"]
    assert isinstance(found, torch.Tensor) and found.dtype == want.dtype and torch.equal(found, want)


def test_labels_of_unlike_first_size_come_one_after_the_other():
    boxes = [np.arange(8.0).reshape(2, 4), np.zeros((0, 4)), np.ones((1, 4))]
    found = join_labels(views(*boxes))["task/x"]
    assert isinstance(found, Ragged) and found.view_N.tolist() == [0, 0, 2]
    assert torch.equal(found.flat, torch.cat([torch.from_numpy(x) for x in boxes]).float())
    sent = from_block(to_block({"x": found}))["x"]
    assert isinstance(sent, Ragged) and torch.equal(sent.flat, found.flat)


@pytest.mark.parametrize(
    ("values", "got"),
    [
        (("cat", "dog"), "str cat"), ((1, 2.5), "float32 beside int64 (sample s0)"), ((1, True), "bool beside int64 (sample s0)"),
        ((1, None), "no value, and other views have one"), ((1, (1, 2)), "shape [2] beside [] (sample s0)"),
        ((np.ones((2, 4)), np.ones((2, 5))), "shape [2, 5] beside [2, 4] (sample s0)"), (({"a": 1},), "dict {'a': 1}"),
        (((1, (2, 3)),), "tuple (1, (2, 3))"), ((1 + 2j,), "complex (1+2j)"), ((10**400,), f"int {10**400}"[:64]), ((object,), "type <class 'object'>"),
        ((torch.ones(2, dtype=torch.bfloat16),), "Tensor tensor([1., 1.], dtype=torch.bfloat16)"),
    ],
)  # fmt: skip
def test_other_labels_are_refused_by_name(values, got):
    with pytest.raises(UserError) as error:
        join_labels(views(*values))
    (problem,) = error.value.problems
    assert problem.code == "plugin/label" and problem.got == got
    assert problem.where.startswith("plugin `task`, label `x`, sample s")


@dataclass(frozen=True, kw_only=True)
class Boxed(Loss):
    """Knows a value for each patch, and a number of boxes that differs from sample to sample."""

    needs = (
        HiddenAt(IMAGES, layer=1),
        HiddenMean(IMAGES),
        HiddenAt(Select(view="image_order", kind="image")),
    )

    def labels(self, sample, dims):
        n = sum(map(ord, sample.key))
        goal = np.arange(dims.image.tokens) + 100.0 * n
        return {"goal": goal, "boxes": np.full((n % 3, 4), n), "number": n}

    def value(self, ctx):
        return ctx[self.needs[0]].sum()


def test_labels_of_a_loss_are_indexed_by_view_and_patch():
    term, samples = Boxed(name="boxed"), (*paper_objective.CAPTIONS, *paper_objective.CHATS)
    packer = replace(paper_objective.packer(), needs=term.needs, terms=(term,))
    sized = paper_objective.sized(samples, packer, losses=(term,), dims=paper_objective.DIMS)
    whole, parts = [list(cut(sized, tokens)) for tokens in (10_000, 150)]
    for group in (*whole, *parts):
        batch, _ = pack(packer, group)
        ctx = Ctx("boxed", batch, {}, None)
        numbers = [sum(map(ord, key)) for _, key in batch.views]
        assert ctx.label("number").tolist() == numbers
        for need in term.needs:
            pick = batch.gathers[need]
            want = [
                100.0 * numbers[v] + p
                for v, p in zip(pick.view_Q.tolist(), pick.patch_Q.tolist(), strict=True)
            ]
            assert ctx.label("goal")[pick.view_Q, pick.patch_Q].tolist() == want
        boxes = ctx.ragged("boxes")
        assert boxes.view_N.tolist() == [v for v, n in enumerate(numbers) for _ in range(n % 3)]
        assert boxes.flat[:, 0].tolist() == [numbers[v] for v in boxes.view_N.tolist()]
    assert len(whole) == 1 < len(parts) and SPEC.tokens == 9


@dataclass(frozen=True, kw_only=True)
class Fails(Loss):
    """Raises, or gives a list."""

    gives: object

    def labels(self, sample, dims):
        return self.gives[sample.key] if isinstance(self.gives, dict) else self.gives


@pytest.mark.parametrize(("gives", "code", "got"), [({}, "plugin/raised", "KeyError: 'a'"), ([1], "plugin/returned", "a list with an int")])  # fmt: skip
def test_a_fault_of_a_loss_s_labels_names_it(gives, code, got):
    made = paper_objective.views(losses=(Fails(name="fails", gives=gives),), dims=paper_objective.DIMS)
    with pytest.raises(UserError) as error:
        made.of(paper_objective.CAPTIONS[0], 0)
    (problem,) = error.value.problems
    assert (problem.code, problem.got) == (code, got) and problem.where.startswith(
        "fails.labels, test_labels.py:"
    )


def test_a_trace_shows_numbers_and_the_shapes_of_arrays():
    assert [label_text(x) for x in (3, 0.5, True, np.zeros((3, 4)), torch.zeros(9), (1, 2))] == [
        "3", "0.5", "True", "[3, 4]", "[9]", "[2]"
    ]  # fmt: skip


def test_labels_are_read_by_the_right_method():
    batch, _ = paper_objective.packed(paper_objective.CAPTIONS)
    stacked, ragged = torch.arange(6.0).view(2, 3), Ragged(torch.arange(3), torch.tensor([0, 0, 1]))
    ctx = Ctx(
        "t",
        replace(batch, labels={"t/same": stacked, "t/unlike": ragged, "t/one": torch.arange(2)}),
        {},
        None,
    )
    assert ctx.ragged("unlike") is ragged and ctx.label("same") is stacked
    same = ctx.ragged("same")
    assert same.flat.tolist() == list(range(6)) and same.view_N.tolist() == [0, 0, 0, 1, 1, 1]
    with pytest.raises(ValueError, match=r"read it by `ctx\.ragged`"):
        ctx.label("unlike")
    with pytest.raises(ValueError, match=r"read it by `ctx\.label`"):
        ctx.ragged("one")
    with pytest.raises(KeyError, match="reads label `absent`"):
        ctx.ragged("absent")
    empty = replace(batch, labels={}, views=())
    assert len(Ctx("t", empty, {}, None).ragged("x").flat) == 0
    zero = Ctx("t", replace(batch, labels={"t/none": torch.zeros(2, 0, 4)}), {}, None).ragged("none")
    assert zero.flat.shape == (0, 4) and len(zero.view_N) == 0


def test_a_run_without_labels_has_none():
    batch, _ = paper_objective.packed(paper_objective.CHATS[2:])
    assert batch.labels == {}


NAMES = (("main", "a"), ("other", "a"), ("main", "b"), ("main", "c"))
ITEMS = RowGather.of(torch.arange(5), torch.tensor([0, 0, 2, 3, 3]))


def test_a_label_of_rows_has_a_value_for_each_item():
    lists = Ragged(torch.arange(18.0).view(9, 2), torch.tensor([0, 0, 1, 1, 1, 1, 2, 3, 3]))
    labels = {"x/list": lists, "x/one": torch.tensor([1.0, 2, 3, 4]), "y/one": torch.zeros(4)}
    found = item_labels("x", labels, ITEMS, NAMES)
    assert found["x/list"].tolist() == [[0, 1], [2, 3], [12, 13], [14, 15], [16, 17]], (
        "rows 2 to 5 are of no item"
    )
    assert found["x/one"].tolist() == [1, 1, 3, 4, 4] and "y/one" not in found
    even = {"x/list": torch.arange(16).view(4, 2, 2)}
    two = RowGather.of(torch.arange(4), torch.tensor([1, 1, 3, 3]))
    assert item_labels("x", even, two, NAMES)["x/list"].tolist() == [[4, 5], [6, 7], [12, 13], [14, 15]]
    none = RowGather.of(torch.arange(0), torch.arange(0))
    assert item_labels("x", even, none, NAMES)["x/list"].shape == (0, 2)


@pytest.mark.parametrize(
    ("label", "got"),
    [
        (
            Ragged(torch.zeros(6), torch.tensor([0, 0, 2, 2, 3, 3])),
            "sample b: 2 values, and 1 row of view `main`",
        ),
        (Ragged(torch.zeros(4), torch.tensor([0, 0, 2, 3])), "sample c: 1 value, and 2 rows"),
        (torch.zeros(4, 2), "sample b: 2 values, and 1 row"),
    ],
)
def test_a_list_of_another_length_than_the_rows_is_refused_by_sample(label, got):
    with pytest.raises(UserError) as caught:
        item_labels("x", {"x/list": label}, ITEMS, NAMES)
    (problem,) = caught.value.problems
    assert problem.code == "plugin/label" and got in f"{problem.where}: {problem.got}"
    assert "plugin `x`, label `list`" in problem.where
