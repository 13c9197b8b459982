"""The features of teachers on the packed forest, against each image alone: values, and all gradients."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from lmmkit import build
from lmmkit.api import HiddenAt, Loss, StepTerm, TeacherAt
from lmmkit.api.ctx import EVALUATION
from lmmkit.api.model_info import CLIP_MEAN
from lmmkit.recipe import Speed
from tests.support import dense_views, paper_objective, plain_teacher
from tests.support.all_gradients import all_gradients, gradient_errors
from tests.support.fake_cuda import on_card
from tests.support.plain_twins import TWIN_CASES, off, show
from tests.support.tiny_model import SPEC, pack
from tests.test_objective_needs import IMAGES, SAMPLES, SHUFFLED, Reads, smooth, with_adapters

HALF = (0.5, 0.5, 0.5)
READ = (
    TeacherAt("same", IMAGES), TeacherAt("finer", SHUFFLED), TeacherAt("finer", IMAGES), TeacherAt("coarser", SHUFFLED),
    TeacherAt("near", SHUFFLED, fit="exact"),
)  # fmt: skip


class Follows(Reads):
    """Multiplies each need with the states of its rows, so that the teacher decides about the gradients."""

    @property
    def needs(self):
        return (*self.read, HiddenAt(IMAGES, layer=1), HiddenAt(SHUFFLED, layer=1))

    def value(self, ctx):
        return follow(self.read, lambda need: ctx[need])


def follow(needs, tensor):
    states = {need: tensor(HiddenAt(need.at, layer=1)) for need in needs}
    return torch.stack([smooth(tensor(n).tanh() * states[n][:, : tensor(n).shape[1]]) for n in needs]).sum()


def objective(dtype=torch.float64):
    """Returns the tiny objective with four teachers: of its own size, and of finer, coarser and other constants."""
    made = paper_objective.objective(dtype=dtype)
    made.teachers = {
        "same": plain_teacher.teacher(12, 4, 12, dtype=dtype),
        "finer": plain_teacher.teacher(24, 4, 20, dtype=dtype, mean=HALF, std=HALF),
        "coarser": plain_teacher.teacher(12, 6, 8, dtype=dtype, mean=CLIP_MEAN, std=(0.2, 0.3, 0.4)),
        "near": plain_teacher.teacher(12, 4, 16, dtype=dtype, mean=HALF, std=HALF),
    }
    return made


def batch_of(made, term: Loss, samples=SAMPLES, *, share: bool = True):
    specs = {name: teacher.image for name, teacher in made.teachers.items()}
    packer = paper_objective.packer(share=share, terms=(term,), teachers=specs)
    laid_out = paper_objective.sized(samples, packer)
    return pack(packer, laid_out)[0], laid_out


def assert_twin(made, limit: float, *, share: bool = True) -> None:
    term = Follows(name="reads", read=READ)
    batch, samples = batch_of(made, term, share=share)
    made.terms = (term,)
    outcome = made(batch)
    views = [dense_views.dense(made, member) for sample in samples for member in sample.members]
    twin = {need: dense_views.teacher_at(views, need) for need in READ}
    twin |= {need: dense_views.hidden_at(views, need) for need in term.needs if isinstance(need, HiddenAt)}
    ctx = outcome.ctxs["reads"]
    values = {need: off(ctx[need], twin[need]) for need in READ}
    show("off_values", max(values.values()))
    assert max(values.values()) < limit and all(len(ctx[need]) for need in READ), values
    assert not any(ctx[need].requires_grad for need in READ)
    got = all_gradients(made, outcome.sums["reads"])
    want = all_gradients(made, follow(READ, twin.__getitem__))
    largest = max(float(g.abs().max()) for g in want.values())
    errors = gradient_errors(got, want)
    show("off_gradients", max(errors.values()))
    assert largest > 0 and max(errors.values()) < limit, {n: e for n, e in errors.items() if e >= limit}


@pytest.mark.parametrize("recompute", ["none", pytest.param("all", marks=pytest.mark.slow)])
@pytest.mark.parametrize(("dtype", "limit", "share"), TWIN_CASES)
def test_features_of_teachers_equal_those_of_each_image_alone(recompute, share, dtype, limit):
    made = objective(dtype)
    build.set_layers(made, Speed(recompute=recompute))
    assert_twin(made, limit, share=share)


def test_features_of_teachers_under_low_rank_updates_equal_those_of_each_image_alone():
    assert_twin(with_adapters(objective()), 1e-12)


def test_a_teacher_gets_only_the_images_that_needs_read_and_shares_those_of_the_model():
    made, read = objective(), (TeacherAt("same", IMAGES), TeacherAt("finer", SHUFFLED))
    batch, _ = batch_of(made, Reads(name="reads", read=read))
    shown = {need: len(batch.gathers[need].row_Q) // SPEC.tokens for need in read}
    assert {name: len(pixels) for name, pixels in batch.teacher_pixels.items()} == {
        "same": shown[read[0]], "finer": shown[read[1]],
    }  # fmt: skip
    assert sum(shown.values()) == len(batch.pixels_ICXY) > shown[read[0]]
    for pixels_CXY in batch.teacher_pixels["same"]:
        assert any(torch.equal(pixels_CXY, own) for own in batch.pixels_ICXY)


def test_a_teacher_of_a_batch_without_images_runs_only_where_it_is_sharded():
    made = objective()
    term = Reads(name="reads", read=READ)
    made.terms, (batch, _) = (term,), batch_of(made, term, paper_objective.CHATS[2:])
    ran = []
    for name, teacher in made.teachers.items():
        teacher.register_forward_hook(lambda *_, name=name: ran.append(name))
    ctx = made(batch).ctxs["reads"]
    assert [tuple(ctx[need].shape) for need in READ] == [(0, w) for w in (12, 20, 20, 8, 16)] and ran == []
    specs = {name: teacher.image for name, teacher in made.teachers.items()}
    packer = replace(
        paper_objective.packer(terms=(term,), teachers=specs), blank_teachers=frozenset({"finer"})
    )
    batch, _ = packer.pack([], {})
    ctx = made(batch).ctxs["reads"]
    assert [tuple(ctx[need].shape) for need in READ] == [(0, w) for w in (12, 20, 20, 8, 16)] and ran == [
        "finer"
    ]


class OverStep(StepTerm):
    """Has the features of one teacher as its items."""

    needs = (TeacherAt("finer", IMAGES),)

    def embed(self, ctx):
        return ctx[self.needs[0]]


def test_the_first_pass_of_a_step_runs_only_the_teachers_of_terms_over_the_step():
    made, ran = objective(), []
    made.terms = over_step, other = OverStep(name="over_step"), Reads(name="reads", read=READ[:1])
    specs = {name: made.teachers[name].image for name in ("same", "finer")}
    packer = paper_objective.packer(terms=(over_step, other), teachers=specs)
    batch, _ = pack(packer, paper_objective.sized(SAMPLES, packer))
    for name, teacher in made.teachers.items():
        teacher.register_forward_hook(lambda *_, name=name: ran.append(name))
    found = made.step_inputs(batch, EVALUATION)
    assert list(found) == ["over_step"] and ran == ["finer"]
    want = made(batch).ctxs["over_step"]
    assert len(over_step.embed(want)) and torch.equal(
        over_step.embed(found["over_step"]), over_step.embed(want)
    )


def test_teachers_are_no_parts_of_the_objective():
    made = objective()
    parts = [*made.state_dict(), *(name for name, _ in made.named_parameters())]
    before = {name: p.clone() for name, p in made.teachers["same"].named_parameters()}
    made.train().requires_grad_(True).to(torch.float32)
    assert not any("teacher" in name or "same" in name for name in parts)
    for teacher in made.teachers.values():
        assert not teacher.training and not any(p.requires_grad for p in teacher.parameters())
    assert all(torch.equal(p, before[name]) for name, p in made.teachers["same"].named_parameters())


def test_the_features_of_teachers_do_not_wait_for_the_device():
    made, term = objective(torch.float32), Reads(name="reads", read=READ)
    made.terms, (batch, _), made.compute = (term,), batch_of(made, term), torch.bfloat16
    with on_card(made, *made.teachers.values()) as rules:
        outcome = made(batch.to("cuda"))
    assert rules.waited == [] and "reads" in outcome.sums


def test_a_watched_teacher_leaves_the_other_terms_bit_for_bit():
    made = objective(torch.float32)
    term, runs = Reads(name="reads", read=READ), []
    for terms in (paper_objective.TERMS, (*paper_objective.TERMS, term)):
        made.terms = terms
        specs = {name: teacher.image for name, teacher in made.teachers.items()}
        packer = paper_objective.packer(terms=terms, teachers=specs)
        batch, _ = pack(packer, paper_objective.sized(SAMPLES, packer))
        sums, grads = paper_objective.learned(made, [batch])
        sums.pop("reads", None)
        runs.append((sums, {name: g.clone() for name, g in grads.items()}))
    (sums, grads), (watched_sums, watched_grads) = runs
    assert all(torch.equal(watched_sums[name], value) for name, value in sums.items())
    assert all(torch.equal(watched_grads[name], value) for name, value in grads.items())
