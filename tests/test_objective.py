"""The whole objective in float64: shared or apart, in any order, in any number of micro-batches."""

from dataclasses import replace

import pytest
import torch
from lmmkit_guided_loss import GuidedLoss

from lmmkit import build
from lmmkit.api.batch import RowGather
from lmmkit.api.needs import HiddenMean, Select
from lmmkit.attention.backends import Flash, Sdpa
from lmmkit.attention.eager import Eager
from lmmkit.attention.interface import AttentionFn
from lmmkit.data.pipeline import cut
from lmmkit.objective import tap, total
from lmmkit.recipe import Speed
from tests.support import paper_objective
from tests.support.fake_cuda import gradients, on_card
from tests.support.plain_twins import off, show
from tests.support.tiny_model import pack, whole

SAMPLES = (*paper_objective.CAPTIONS, *paper_objective.CHATS)
TERMS = {"next_token", "image_order", "text_order", "guided_loss"}


def assert_same(got, want, limit: float = 1e-12) -> None:
    """Term sums one by one, and every parameter's gradient."""
    (sums, gradients), (want_sums, want_gradients) = got, want
    assert set(sums) == set(want_sums) == TERMS and set(gradients) == set(want_gradients)
    errors = {name: off(sums[name], want_sums[name]) for name in sums}
    show("off_sums", max(errors.values()))
    largest = max(float(g.abs().max()) for g in want_gradients.values())
    for name, gradient in gradients.items():
        assert gradient is not None and gradient.abs().max() > 1e-6 * largest, f"{name} does not learn"
        errors[name] = off(gradient, want_gradients[name])
    show("off_gradients", max(errors[name] for name in gradients))
    assert max(errors.values()) < limit, {name: e for name, e in errors.items() if e >= limit}


@pytest.mark.parametrize("backend", [Sdpa(), Eager()], ids=lambda b: b.name)
@pytest.mark.parametrize(
    "samples", [paper_objective.CAPTIONS, paper_objective.CHATS, SAMPLES], ids=["captions", "chats", "both"]
)
def test_shared_prefixes_are_views_apart(samples, backend):
    made = paper_objective.objective(backend=backend)
    (shared, _), (apart, _) = paper_objective.packed(samples), paper_objective.packed(samples, share=False)
    assert len(shared) < len(apart) and shared.count == apart.count
    assert_same(paper_objective.learned(made, [shared]), paper_objective.learned(made, [apart]))


def test_sdpa_is_eager():
    batch, _ = paper_objective.packed(SAMPLES)
    wanted = paper_objective.learned(paper_objective.objective(backend=Eager()), [batch])
    assert_same(paper_objective.learned(paper_objective.objective(), [batch]), wanted)


def test_permuted_trees_change_nothing():
    made = paper_objective.objective()
    batches = [
        paper_objective.packed(samples)[0] for samples in (SAMPLES, SAMPLES[::-1], SAMPLES[2:] + SAMPLES[:2])
    ]
    want = paper_objective.learned(made, batches[:1])
    for batch in batches[1:]:
        assert_same(paper_objective.learned(made, [batch]), want)


def test_one_micro_batch_is_several():
    made, packer = paper_objective.objective(), paper_objective.packer()
    sized = paper_objective.sized(SAMPLES, packer)
    whole, parts = (list(cut(sized, tokens)) for tokens in (10_000, 150))
    assert len(whole) == 1 and len(parts) > 2
    batches = [[pack(packer, part)[0] for part in cuts] for cuts in (whole, parts)]
    assert_same(paper_objective.learned(made, batches[1]), paper_objective.learned(made, batches[0]))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_recomputing_gives_the_same_bits(dtype):
    made, (batch, _) = paper_objective.objective(dtype=dtype), paper_objective.packed(SAMPLES)
    runs = []
    for which in ("none", "all", 1, "none"):
        build.set_layers(made, Speed(recompute=which))
        sums, gradients = paper_objective.learned(made, [batch])
        mass = made(batch).ctxs["guided_loss"][paper_objective.GUIDED.needs[0]].detach()
        runs.append({**sums, **{k: g.clone() for k, g in gradients.items()}, "mass": mass})
    for name, tensor in runs[0].items():
        assert all(torch.equal(run[name], tensor) for run in runs[1:]), name


def test_recomputing_remembers_less():
    made, (batch, _) = paper_objective.objective(), paper_objective.packed(SAMPLES)
    kept = []
    for which in ("none", 1, "all"):
        build.set_layers(made, Speed(recompute=which))
        numbers = 0

        def count(tensor):
            nonlocal numbers
            numbers += tensor.numel()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(count, lambda t: t):
            made(batch)
        kept.append(numbers)
    assert kept[2] < kept[1] < kept[0] and kept[2] < 0.7 * kept[0]


def test_a_batch_of_text_alone_gives_every_parameter_a_gradient_of_zero():
    made = paper_objective.objective()
    batch, _ = paper_objective.packed([paper_objective.chat("t", "hi", "yes", images=0)])
    sums, gradients = paper_objective.learned(made, [batch])
    assert batch.count["image_order"] == batch.count["guided_loss"] == batch.count["text_order"] == 0
    assert sums["image_order"] == sums["guided_loss"] == sums["text_order"] == 0 != sums["next_token"]
    idle = [name for name in gradients if name.startswith(("plugins.", "lmm.vision.", "lmm.connector."))]
    assert idle and all(gradients[name].eq(0).all() for name in idle)


def test_guided_loss_is_one_minus_the_mass_of_every_response_row():
    made, (batch, _) = paper_objective.objective(), paper_objective.packed(paper_objective.CAPTIONS)
    out = made(batch)
    alpha = out.ctxs["guided_loss"][paper_objective.GUIDED.needs[0]]
    assert len(alpha) == batch.count["guided_loss"] and bool(((alpha > 0) & (alpha < 1)).all())
    assert off(out.sums["guided_loss"], (1 - alpha).sum()) < 1e-12


def test_the_mean_over_visual_tokens_is_of_its_own_views_rows():
    made, (batch, paths) = paper_objective.objective(), paper_objective.packed(paper_objective.CAPTIONS)
    need, views = HiddenMean(Select(view="image_order", kind="image")), batch.views_of("image_order")
    rows = [
        torch.from_numpy(paths[v][1 : 4 + 3 * i]) for i, v in enumerate(views)
    ]  # as many as the view's number
    view_Q = torch.cat([torch.full((len(r),), v) for v, r in zip(views, rows, strict=True)])
    out = made.lmm(whole(batch), made.tokens(batch))
    got = tap(need, replace(batch, gathers={need: RowGather.of(torch.cat(rows), view_Q)}), out)
    assert off(got, torch.stack([out.hidden_WD[r].mean(0) for r in rows])) < 1e-12


def test_a_last_layer_of_the_rows_that_are_read_learns_what_the_whole_one_does():
    made, (batch, _) = paper_objective.objective(), paper_objective.packed(SAMPLES)
    rows = made.lmm(batch, made.tokens(batch)).row_W
    assert len(rows) < 0.7 * len(batch)
    assert_same(paper_objective.learned(made, [batch]), paper_objective.learned(made, [whole(batch)]))


def test_mass_of_chosen_layers_is_their_mean():
    made, (batch, _) = paper_objective.objective(), paper_objective.packed(paper_objective.CHATS)
    (need,) = paper_objective.GUIDED.needs
    out = made.lmm(batch, made.tokens(batch))
    parts = []
    for layers in ((0,), (1,), "all"):
        chosen = replace(need, layers=layers)
        parts.append(tap(chosen, replace(batch, gathers={chosen: batch.gathers[need]}), out))
    assert off((parts[0] + parts[1]) / 2, parts[2]) < 1e-12 < off(parts[0], parts[1])


def test_chunked_cross_entropy_is_the_whole_one(monkeypatch):
    made, (batch, _) = paper_objective.objective(), paper_objective.packed(SAMPLES * 4)
    want = paper_objective.learned(made, [batch])
    assert len(batch.predict) > 256
    monkeypatch.setattr("lmmkit.model.cross_entropy.LOGIT_BYTES", 1)
    assert_same(paper_objective.learned(made, [batch]), want)


@pytest.mark.parametrize("backend", [Flash(), Sdpa(), Eager()], ids=lambda b: b.name)
@pytest.mark.parametrize("norms", [False, True])
def test_on_a_card_no_micro_batch_waits_for_the_device_and_attention_is_in_bfloat16(
    backend, norms, monkeypatch
):
    monkeypatch.setattr(paper_objective, "TEXT", replace(paper_objective.TEXT, qk_norm=norms))
    made, (batch, _) = (
        paper_objective.objective(dtype=torch.float32, backend=backend),
        paper_objective.packed(SAMPLES),
    )
    made.compute = torch.bfloat16
    dtypes = set()
    prepare = type(backend).prepare

    def watched(self, spec, device):
        attention_fn = prepare(self, spec, device)

        def call(qkv, heads, rotary):
            out, mass = attention_fn.call(qkv, heads, rotary)
            dtypes.update((qkv.dtype, out.dtype))
            return out, mass

        return AttentionFn(attention_fn.rows, call)

    monkeypatch.setattr(type(backend), "prepare", watched)
    with on_card(made) as rules:
        sums = made(batch.to("cuda")).sums
        loss = total(sums, paper_objective.WEIGHTS, batch.count)
        found = gradients(loss, list(made.parameters()), torch.ones_like(loss))
    assert rules.waited == []
    assert dtypes == {torch.bfloat16} and set(sums) == TERMS
    assert [each.shape for each in found] == [p.shape for p in made.parameters()]
    assert bool(rules.called) == (backend != Eager())


def test_on_a_card_no_setting_of_a_term_and_no_metric_waits_for_the_device():
    """Takes the settings that need the number of views and their sizes: means over a view and over a sample."""
    terms = (
        GuidedLoss(name="guided_loss", mean="sample", alpha="mean"),
        replace(paper_objective.IMAGE_ORDER, read="visual"),
        paper_objective.TEXT_ORDER,
    )
    made = paper_objective.objective(dtype=torch.float32)
    made.terms, (batch, _) = terms, paper_objective.packed(SAMPLES, terms=terms)
    with on_card(made) as rules:
        outcome = made(moved := batch.to("cuda"))
        totals, _ = made.metric_sums(outcome, moved)
        loss = total(outcome.sums, paper_objective.WEIGHTS, batch.count)
        found = gradients(loss, list(made.parameters()), torch.ones_like(loss))
    assert rules.waited == [] and set(totals) == {"guided_loss/mass", "image_order/accuracy"}
    assert [each.shape for each in found] == [p.shape for p in made.parameters()]
