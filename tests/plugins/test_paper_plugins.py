"""The paper's plugins: permutations, views, values, and the meaning of their settings."""

from __future__ import annotations

import math
from dataclasses import replace
from itertools import combinations

import numpy as np
import pytest
import torch
from lmmkit_directed_token import DirectedToken
from lmmkit_guided_loss import GuidedLoss
from lmmkit_shuffle.image_order import ImageOrder, Shuffle
from lmmkit_shuffle.permutations import permutations
from lmmkit_shuffle.text_order import TextOrder

from lmmkit.api import Batch, Ctx, Dims, Image, ImageSpec, Sample, Turn
from lmmkit.api.batch import RowGather
from lmmkit.attention.forest import roots
from lmmkit.attention.schedule import AttentionSpec

SAMPLE = Sample(
    key="s", images=(Image("a.jpg"), Image("b.jpg")),
    turns=(Turn("user", "what", images=2), Turn("assistant", "A cat sat. On the mat, a cat"), Turn("user", "x"), Turn("assistant", "second")),
)  # fmt: skip
DIMS = Dims(width=8, vocab=50, layers=2, heads=2, image=ImageSpec(size=48, grid=(6, 6), width=8))


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


@pytest.mark.parametrize("choose", ["seed", "hamming"])
def test_permutations_are_distinct_reproducible_and_never_the_identity(choose):
    table = permutations(9, 24, 3, choose)
    assert len(set(table)) == 24 and tuple(range(9)) not in table
    assert all(sorted(row) == list(range(9)) for row in table)
    assert table == permutations(9, 24, 3, choose) != permutations(9, 24, 4, choose)


def test_greedy_choice_keeps_permutations_farther_apart():
    def least(table):
        return min(sum(a != b for a, b in zip(p, q, strict=True)) for p, q in combinations(table, 2))

    assert least(permutations(9, 24, 0, "hamming")) > least(permutations(9, 24, 0, "seed"))


def test_all_permutations_but_the_identity_can_be_chosen():
    assert len(permutations(3, 5, 0, "seed")) == 5 and len(permutations(3, 5, 0, "hamming")) == 5


def test_the_shuffle_moves_whole_tiles_and_undoes():
    pixels = torch.arange(3 * 6 * 6.0).view(3, 6, 6)
    shuffle = Shuffle(3, (4, 0, 1, 2, 3, 5, 6, 8, 7))
    shuffled = shuffle(pixels)
    assert torch.equal(shuffled[:, :2, :2], pixels[:, 2:4, 2:4]), "tile 4 is at position 0"
    assert torch.equal(shuffle.undo()(shuffled), pixels)
    assert hash(shuffle) == hash(Shuffle(3, shuffle.order))


def test_image_order_derives_one_view_and_shows_no_image_unshuffled():
    task = ImageOrder(name="order", grid=3, permutations=24)
    (view,) = task.views(SAMPLE, rng())
    assert view.sample.turns == SAMPLE.turns and view.supervision == "none"
    order = permutations(9, 24, 0, "seed")[view.labels["permutation"]]
    assert [image.edit.order for image in view.sample.images] == [order, order]
    twice = replace(SAMPLE, images=(SAMPLE.images[0],) * 2)
    (view,) = task.views(twice, rng())
    assert view.sample.images[0] == view.sample.images[1] != twice.images[0]
    assert task.views(Sample(key="t", turns=SAMPLE.turns), rng()) == []
    drawn = {task.views(SAMPLE, rng(i))[0].labels["permutation"] for i in range(300)}
    assert drawn == set(range(24))


def order_ctx(task: ImageOrder, logits: torch.Tensor, labels: list[int]) -> Ctx:
    """Returns a context in which the module gives these logits."""
    empty = torch.zeros(0, dtype=torch.int64)
    spec = AttentionSpec(roots([1]), torch.zeros(1, dtype=torch.bool), empty)
    batch = Batch(
        attention=spec, last=spec, id_T=torch.zeros(1, dtype=torch.int64), scatters=(), pixels_ICXY=torch.zeros(0),
        predict=RowGather.of(empty, empty), target_S=empty, term_S=empty, text_terms=("next_token",),
        views=tuple((task.name, f"s{i}") for i in range(len(labels))),
        labels={f"{task.name}/permutation": torch.tensor(labels)},
    )  # fmt: skip
    return Ctx(task.name, batch, {task.needs[0]: logits}, torch.nn.Identity())


def test_the_puzzles_of_image_order_are_what_the_images_show():
    """Shuffles an image of tile numbers, and puts it back by the answer."""
    task = ImageOrder(name="o", grid=3, permutations=7, seed=4)
    table = permutations(9, 7, 4, "seed")
    logits, labels = torch.randn(6, 7, generator=torch.Generator().manual_seed(1)), [0, 1, 2, 3, 4, 5]
    logits[2] = torch.tensor([0.0, 0, 9, 0, 0, 0, 0])
    ctx = order_ctx(task, logits, labels)
    puzzles, numbers = task.puzzles(ctx), torch.arange(9.0).view(1, 3, 3)
    for puzzle, k, row in zip(puzzles, labels, logits, strict=True):
        shown = Shuffle(3, table[k])(numbers)
        back = Shuffle(3, table[int(row.argmax())]).undo()(shown)
        assert list(puzzle.shuffled) == shown.flatten().tolist()
        assert list(puzzle.predicted) == back.flatten().tolist()
        assert (
            puzzle.right == (int(row.argmax()) == k) and puzzle.gold == tuple(range(9)) and puzzle.grid == 3
        )
        assert puzzle.p_gold == pytest.approx(float(row.softmax(0)[k]))
        assert puzzle.p_predicted == pytest.approx(float(row.softmax(0).max()))
        assert puzzle.chance == pytest.approx(1 / 7)
    assert sum(p.right for p in puzzles) == float(task.metrics(ctx)["accuracy"].total) >= 1
    assert task.puzzles(order_ctx(task, logits[:0], [])) == []


def test_the_puzzle_of_text_order_has_the_words():
    task = TextOrder(name="t")
    (view,) = task.views(SAMPLE, rng())
    for text, right in (("A cat sat. On the mat, a cat", True), (" a cat", False), ("", False)):
        puzzle = task.text_puzzle(view, text)
        assert puzzle.right is right and puzzle.predicted == tuple(text.split())
        assert sorted(puzzle.shuffled) == sorted(puzzle.gold) and puzzle.shuffled != puzzle.gold
        assert (float(puzzle.right), puzzle.chance) == task.score(view, text)


def test_image_order_checks_its_grid_and_count():
    assert ImageOrder(name="o", grid=3, permutations=24).check(DIMS) == ""
    assert ImageOrder(name="o", grid=4, permutations=24).check(DIMS).startswith("grid")
    for grid in (1, 0, -3):
        assert ImageOrder(name="o", grid=grid, permutations=5).check(DIMS).startswith("grid")
    for wrong in (1, 0, -2):
        assert "not 2 to" in ImageOrder(name="o", grid=3, permutations=wrong).check(DIMS)
    assert ImageOrder(name="o", grid=2, permutations=23).check(DIMS) == ""
    assert ImageOrder(name="o", grid=2, permutations=24).check(DIMS).startswith("permutations")
    assert ImageOrder(name="o", grid=3, permutations=24).chance(DIMS) == math.log(24)


def test_the_directed_token_checks_its_spread():
    assert DirectedToken(name="d").check(DIMS) == "" and "std" in DirectedToken(name="d", std=-1.0).check(
        DIMS
    )


def test_text_order_shuffles_words_of_the_first_response_only():
    (view,) = TextOrder(name="t").views(SAMPLE, rng())
    question, answer = view.sample.turns
    assert (
        answer.text == "A cat sat. On the mat, a cat" and view.supervision == "train" and question.images == 2
    )
    instruction, words = question.text.split(": ", 1)
    assert instruction.startswith("Re-order the sentence")
    assert sorted(words.split()) == sorted(answer.text.split()) and words.split() != answer.text.split()


def test_text_order_skips_texts_of_one_word_and_redraws_the_identity():
    def turns(text):
        return Sample(key="s", turns=(Turn("user", "q"), Turn("assistant", text)))

    assert TextOrder(name="t").views(turns("one"), rng()) == []
    assert TextOrder(name="t").views(turns("so so"), rng()) == []
    for seed in range(20):
        (view,) = TextOrder(name="t").views(turns("a b"), rng(seed))
        assert view.sample.turns[0].text.endswith("b a")


def test_text_order_takes_the_first_response_that_is_learned():
    first, second = (replace(SAMPLE.turns[i], supervised=False) for i in (1, 3))
    left = replace(
        SAMPLE, turns=(SAMPLE.turns[0], first, SAMPLE.turns[2], Turn("assistant", "the second one"))
    )
    (view,) = TextOrder(name="t").views(left, rng())
    assert view.sample.turns[1] == left.turns[3]
    assert sorted(view.sample.turns[0].text.split()[-3:]) == ["one", "second", "the"]
    assert TextOrder(name="t").views(replace(left, turns=(*left.turns[:3], second)), rng()) == []


def test_text_order_scores_the_exact_sentence_and_knows_chance():
    (view,) = TextOrder(name="t").views(SAMPLE, rng())
    task = TextOrder(name="t")
    assert task.score(view, " A cat sat. On the mat,  a cat ")[0] == 1.0
    assert task.score(view, "A cat sat. on the mat, a cat") == (0.0, 2 / math.factorial(8))  # two "cat"


def guided_ctx(loss: GuidedLoss, alpha: list[float], views: list[int], uniform: list[float]) -> Ctx:
    """Returns a context over ten packed rows, with queries from row 5 on."""
    row_Q = torch.arange(5, 5 + len(alpha))
    gather = RowGather.of(row_Q, torch.tensor(views), torch.tensor(uniform))
    empty = torch.empty(0, dtype=torch.int64)
    spec = AttentionSpec(roots([10]), torch.zeros(10, dtype=torch.bool), row_Q)
    batch = Batch(
        attention=spec, last=spec, id_T=empty, scatters=(), pixels_ICXY=torch.empty(0), predict=RowGather.of(empty, empty),
        target_S=empty, term_S=empty, text_terms=("next_token",), gathers={loss.needs[0]: gather},
    )  # fmt: skip
    return Ctx("g", batch, {loss.needs[0]: torch.tensor(alpha)}, None)


def test_guided_loss_settings_alpha_and_mean():
    alpha, views, uniform = [0.5, 0.25, 0.9], [0, 0, 1], [3 / 6, 3 / 7, 3 / 8]
    token = GuidedLoss(name="g")
    ctx = guided_ctx(token, alpha, views, uniform)
    assert token.count(ctx.batch) == 3
    assert float(token.value(ctx)) == pytest.approx(0.5 + 0.75 + 0.1)
    assert float(token.metrics(ctx)["mass"].chance) == pytest.approx(sum(uniform))
    sample = GuidedLoss(name="g", mean="sample")
    ctx = guided_ctx(sample, alpha, views, uniform)
    assert sample.count(ctx.batch) == 2
    assert float(sample.value(ctx)) == pytest.approx((0.5 + 0.75) / 2 + 0.1)
    mean = GuidedLoss(name="g", alpha="mean")
    assert float(mean.value(guided_ctx(mean, alpha, views, uniform))) == pytest.approx(3 - sum(alpha) / 3)


def test_guided_loss_queries():
    assert GuidedLoss(name="g").needs[0].q.shift == 0
    assert GuidedLoss(name="g", query="predict").needs[0].q.shift == -1
