"""Each need on the packed forest, against every view alone with whole maps: values, and all gradients."""

from __future__ import annotations

from dataclasses import dataclass, replace

import pytest
import torch
from torch import Tensor

from lmmkit import build
from lmmkit.api import HiddenAt, HiddenMean, Loss, Select, VisionAt
from lmmkit.api.needs import Need
from lmmkit.model.transforms import lora
from lmmkit.recipe import Speed
from tests.support import dense_views, paper_objective
from tests.support.all_gradients import all_gradients, gradient_errors
from tests.support.fake_cuda import on_card
from tests.support.plain_twins import TWIN_CASES, off, show
from tests.support.tiny_model import SPEC, pack, pixels

SAMPLES = (*paper_objective.CAPTIONS, *paper_objective.CHATS)
IMAGES, WORDS = Select(kind="image"), Select(role="response", kind="text")
SHUFFLED = Select(view="image_order", kind="image")
HIDDEN = (
    HiddenAt(IMAGES, layer=2), HiddenAt(WORDS, layer=2), HiddenAt(IMAGES, layer=0), HiddenAt(SHUFFLED, layer=3),
    HiddenMean(SHUFFLED, layer=2), HiddenMean(WORDS, layer=1), HiddenMean(IMAGES),
    HiddenMean(IMAGES, layer=2),
)  # fmt: skip
VISION = (
    VisionAt(IMAGES), VisionAt(SHUFFLED, detach=False), VisionAt(IMAGES, "projected"),
    VisionAt(SHUFFLED, "projected", detach=False), HiddenAt(SHUFFLED, layer=1),
)  # fmt: skip
TWINS = {
    HiddenAt: dense_views.hidden_at,
    HiddenMean: dense_views.hidden_mean,
    VisionAt: dense_views.vision_at,
}


@dataclass(frozen=True, kw_only=True)
class Reads(Loss):
    """Adds a smooth function of each need, in which the place of every value counts."""

    read: tuple[Need, ...]

    @property
    def needs(self):
        return self.read

    def count(self, batch):
        return len(batch.views)

    def value(self, ctx):
        return torch.stack([smooth(ctx[need]) for need in self.needs]).sum()


def smooth(x: Tensor) -> Tensor:
    factor = torch.sin(1.7 * torch.arange(x.numel(), device=x.device) + 1).view(x.shape)
    return (torch.tanh(x) * factor).sum()


@pytest.fixture
def deep(monkeypatch):
    """Makes the decoder four blocks deep."""
    monkeypatch.setattr(paper_objective, "TEXT", replace(paper_objective.TEXT, depth=4))


def assert_twin(made, term: Reads, limit: float, *, share: bool = True) -> None:
    """Compares values and gradients of all parameters with those of the views alone."""
    packer = paper_objective.packer(share=share, terms=(term,))
    samples = paper_objective.sized(SAMPLES, packer)
    batch, _ = pack(packer, samples)
    made.terms = (term,)
    outcome = made(batch)
    views = [dense_views.dense(made, member) for sample in samples for member in sample.members]
    want = [TWINS[type(need)](views, need) for need in term.needs]
    ctx = outcome.ctxs[term.name]
    values = {need: off(ctx[need], x) for need, x in zip(term.needs, want, strict=True)}
    show("off_values", max(values.values()))
    assert max(values.values()) < limit, values
    got = all_gradients(made, outcome.sums[term.name])
    want_gradients = all_gradients(made, torch.stack([smooth(x) for x in want]).sum())
    errors = gradient_errors(got, want_gradients)
    show("off_gradients", max(errors.values()))
    assert max(errors.values()) < limit, {name: e for name, e in errors.items() if e >= limit}


@pytest.mark.parametrize("recompute", ["none", pytest.param("all", marks=pytest.mark.slow)])
@pytest.mark.parametrize(("dtype", "limit", "share"), TWIN_CASES)
def test_hidden_states_after_any_block_equal_those_of_the_views_alone(deep, recompute, share, dtype, limit):
    made = paper_objective.objective(dtype=dtype)
    build.set_layers(made, Speed(recompute=recompute))
    assert_twin(made, Reads(name="reads", read=HIDDEN), limit, share=share)


@pytest.mark.parametrize("recompute", ["none", pytest.param("all", marks=pytest.mark.slow)])
def test_hidden_states_under_low_rank_updates_equal_those_of_the_views_alone(deep, recompute):
    made = with_adapters(paper_objective.objective())
    build.set_layers(made, Speed(recompute=recompute))
    assert_twin(made, Reads(name="reads", read=HIDDEN), 1e-12)


@pytest.mark.parametrize("recompute", ["none", pytest.param("all", marks=pytest.mark.slow)])
@pytest.mark.parametrize(("dtype", "limit", "share"), TWIN_CASES)
def test_vision_features_equal_those_of_the_views_alone(deep, recompute, share, dtype, limit):
    made = paper_objective.objective(dtype=dtype)
    build.set_layers(made, Speed(recompute=recompute))
    assert_twin(made, Reads(name="reads", read=VISION), limit, share=share)


def test_vision_features_under_low_rank_updates_equal_those_of_the_views_alone(deep):
    assert_twin(with_adapters(paper_objective.objective()), Reads(name="reads", read=VISION), 1e-12)


def test_detached_features_give_the_encoder_no_gradient(deep):
    made = paper_objective.objective()
    for need, learns in ((VisionAt(IMAGES), False), (VisionAt(IMAGES, detach=False), True)):
        term = Reads(name="reads", read=(need,))
        made.terms, (batch, _) = (term,), paper_objective.packed(SAMPLES, terms=(term,))
        value = made(batch).ctxs["reads"][need]
        assert value.requires_grad == learns and len(value) == len(batch.gathers[need]) > 0


def test_image_rows_know_their_image_and_patch_and_read_nothing_of_the_last_layer(deep):
    needs = (VisionAt(IMAGES), HiddenAt(SHUFFLED, layer=1), HiddenMean(IMAGES), HiddenAt(WORDS))
    packer = paper_objective.packer(terms=(Reads(name="reads", read=needs),))
    samples = paper_objective.sized(SAMPLES, packer)
    batch, _ = pack(packer, samples)
    members = [member for sample in samples for member in sample.members]
    for need in needs[:3]:
        pick = batch.gathers[need]
        for item, patch, v in zip(
            pick.item_Q.tolist(), pick.patch_Q.tolist(), pick.view_Q.tolist(), strict=True
        ):
            (image,) = members[v].view.sample.images
            number, place = divmod(item, SPEC.tokens)
            assert place == patch and torch.equal(batch.pixels_ICXY[number], pixels(image, "pad"))
        assert pick.patch_Q.tolist() == list(range(SPEC.tokens)) * len(pick.size_G)
    assert batch.gathers[needs[3]].item_Q is None is batch.gathers[needs[3]].patch_Q
    only, _ = paper_objective.packed(SAMPLES, terms=(Reads(name="reads", read=needs[:1]),))
    plain, _ = paper_objective.packed(SAMPLES, terms=())
    assert torch.equal(only.last.read_T, plain.last.read_T) and not only.inner


def test_vision_features_of_a_batch_without_images_are_empty(deep):
    made, term = paper_objective.objective(), Reads(name="reads", read=VISION)
    made.terms, (batch, _) = (term,), paper_objective.packed(paper_objective.CHATS[2:], terms=(term,))
    ctx = made(batch).ctxs["reads"]
    widths = [SPEC.width, SPEC.width, paper_objective.TEXT.width, paper_objective.TEXT.width]
    assert [tuple(ctx[need].shape) for need in VISION[:4]] == [(0, width) for width in widths]


def with_adapters(made):
    """Attaches low-rank updates that are not zero to the decoder."""
    adapters = lora.attach(made.lmm.decoder, r=3, alpha=6.0, dropout=0.0, targets=lora.TARGETS, seed=0)
    made.double()
    with torch.no_grad():
        for i, p in enumerate(adapters):
            p.copy_(torch.randn(p.shape, generator=torch.Generator().manual_seed(i)) * 0.3)
    return made


def test_needs_of_a_layer_share_one_gather_and_leave_the_last_layer_as_it_was(deep):
    inner = tuple(need for need in HIDDEN if need.layer != "final")
    batch, _ = paper_objective.packed(SAMPLES, terms=(Reads(name="reads", read=inner),))
    plain, _ = paper_objective.packed(SAMPLES, terms=())
    assert torch.equal(batch.last.read_T, plain.last.read_T) and set(batch.inner) == {0, 1, 2, 3}
    second = [batch.gathers[need].row_Q for need in inner if need.layer == 2]
    rows = batch.inner[2]
    assert rows.tolist() == sorted({row for each in second for row in each.tolist()})
    assert len(rows) < sum(map(len, second))
    final, _ = paper_objective.packed(SAMPLES, terms=(Reads(name="reads", read=(HiddenAt(IMAGES),)),))
    assert final.last.read_T.sum() > plain.last.read_T.sum() and not final.inner


def test_a_watched_inner_need_leaves_the_other_terms_bit_for_bit(deep):
    made = paper_objective.objective(dtype=torch.float32)
    term = Reads(name="reads", read=(HiddenAt(IMAGES, layer=2), HiddenMean(SHUFFLED, layer=1)))
    runs = []
    for terms in (paper_objective.TERMS, (*paper_objective.TERMS, term)):
        made.terms = terms
        sums, grads = paper_objective.learned(made, [paper_objective.packed(SAMPLES, terms=terms)[0]])
        sums.pop("reads", None)
        runs.append((sums, {name: g.clone() for name, g in grads.items()}))
    (sums, grads), (watched_sums, watched_grads) = runs
    assert all(torch.equal(watched_sums[name], value) for name, value in sums.items())
    assert all(torch.equal(watched_grads[name], value) for name, value in grads.items())


def test_needs_do_not_wait_for_the_device(deep):
    term = Reads(name="reads", read=(*HIDDEN, *VISION))
    made, (batch, _) = (
        paper_objective.objective(dtype=torch.float32),
        paper_objective.packed(SAMPLES, terms=(term,)),
    )
    made.terms, made.compute = (term,), torch.bfloat16
    with on_card(made) as rules:
        outcome = made(batch.to("cuda"))
    assert rules.waited == [] and "reads" in outcome.sums
