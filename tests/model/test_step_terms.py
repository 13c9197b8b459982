"""Terms over a step: however the step is cut, value and gradients are those of one graph over all items."""

from __future__ import annotations

import copy
from collections import Counter
from dataclasses import dataclass, replace
from itertools import zip_longest
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from lmmkit import build
from lmmkit import objective as objective_module
from lmmkit.api import AttnTo, HiddenAt, LogProb, Loss, Select, StepTerm
from lmmkit.api.batch import Batch
from lmmkit.api.components import Term
from lmmkit.api.ctx import EVALUATION
from lmmkit.data.sources.other_samples import SourceSamples
from lmmkit.errors import UserError
from lmmkit.evaluate import terms as evaluation
from lmmkit.model.reference import Reference
from lmmkit.model.step_terms import shares
from lmmkit.model.transforms import lora
from lmmkit.objective import Objective
from lmmkit.recipe import Speed
from lmmkit.training.distributed.process_group import ALONE
from lmmkit.training.first_pass import FirstPass
from tests.support import dense_views, paper_objective, preference
from tests.support.contrast_plugin import SHOWN, WORDS, Contrast
from tests.support.tiny_model import pack, read

SAMPLES = (*paper_objective.CAPTIONS, *paper_objective.CHATS)
TERM = Contrast(name="contrast")
WITH_IMAGES = 5
CUTS = ([6], [2, 4], [1] * 6, [3, 0, 3], [0, 5, 1])


def objective(**settings):
    made = paper_objective.objective(**settings)
    made.plugins["contrast"] = module = TERM.modules(paper_objective.DIMS)
    module.reset_parameters()
    module.to(made.lmm.decoder.norm.weight.dtype)
    made.terms = (TERM,)
    return made


def packed(cut):
    packer = paper_objective.packer(terms=(TERM,))
    sized = paper_objective.sized(SAMPLES, packer)
    ends = [sum(cut[: i + 1]) for i in range(len(cut))]
    return [pack(packer, sized[end - n : end])[0] for n, end in zip(cut, ends, strict=True)]


def two_passes(made, batches) -> torch.Tensor:
    """Runs both passes and the backward pass; returns the value of the term over the step."""
    first, device = FirstPass.of(made, batches, torch.device("cpu"), EVALUATION, ALONE), torch.device("cpu")
    value = 0.0
    for number, batch in enumerate(batches):
        first.replay(number)
        sums = made(batch.to(device), EVALUATION, first.shares[number]).sums
        part = sums["contrast"]
        (part + 0 * sums["next_token"]).backward()  # an empty micro-batch is on the graph by the other terms
        value = value + part.detach()
    return value


def gradients(made):
    return {n: torch.zeros_like(p) if p.grad is None else p.grad.clone() for n, p in made.named_parameters()}


def from_views_alone(made):
    """Returns value and gradients from one graph over every view alone, with whole maps."""
    packer = paper_objective.packer(terms=(TERM,))
    members = [m for s in paper_objective.sized(SAMPLES, packer) for m in s.members]
    views = [dense_views.dense(made, m) for m in members if m.view.name == "main" and m.view.sample.images]
    pair = [dense_views.hidden_mean(views, need) for need in (SHOWN, WORDS)]
    items = torch.stack([F.normalize(x, dim=-1) for x in pair], 1)
    value = TERM.step_value(items, made.plugins["contrast"])
    made.zero_grad()
    value.backward()
    return value.detach(), gradients(made)


def assert_equal(made, batches, want, limit):
    made.zero_grad()
    value = two_passes(made, batches)
    assert abs(value - want[0]) < limit * abs(want[0])
    largest = max(float(g.abs().max()) for g in want[1].values())
    for name, got in gradients(made).items():
        assert float((got - want[1][name]).abs().max()) < limit * largest, name


@pytest.mark.parametrize("cut", CUTS, ids=str)
@pytest.mark.parametrize(("dtype", "limit"), [(torch.float64, 1e-12), (torch.float32, 5e-6)])
def test_value_and_gradients_are_those_of_one_graph_over_the_step(cut, dtype, limit):
    made = objective(dtype=dtype)
    batches = packed(cut)
    assert sum(batch.count["contrast"] for batch in batches) == WITH_IMAGES
    assert_equal(made, batches, from_views_alone(made), limit)


def test_the_same_with_recomputed_blocks():
    made = objective()
    want = from_views_alone(made)
    build.set_layers(made, Speed(recompute="all"))
    assert_equal(made, packed([2, 4]), want, 1e-12)


def test_dropout_of_low_rank_updates_is_the_same_in_both_passes():
    made, batches = objective(), packed([2, 1, 3])
    adapters = lora.attach(made.lmm.decoder, r=3, alpha=6.0, dropout=0.3, targets=lora.TARGETS, seed=0)
    made.double().train()
    with torch.no_grad():
        for i, p in enumerate(adapters):
            p.copy_(torch.randn(p.shape, generator=torch.Generator().manual_seed(i)) * 0.3)
    torch.manual_seed(5)
    items = torch.cat([TERM.embed(made(batch).ctxs["contrast"]) for batch in batches])
    value = TERM.step_value(items, made.plugins["contrast"])
    value.backward()
    want = (value.detach(), gradients(made))
    torch.manual_seed(6)
    other = torch.cat([TERM.embed(made(batch).ctxs["contrast"]) for batch in batches])
    assert (other - items).abs().max() > 1e-3, "dropout changes the items"
    torch.manual_seed(5)
    assert_equal(made, batches, want, 1e-12)


@dataclass(frozen=True, kw_only=True)
class Weights(Loss):
    """Reads attention weights, and states that no term over the step reads."""

    needs = (AttnTo(q=Select(role="response")), HiddenAt(Select(kind="image"), layer=1))

    def value(self, ctx):
        return ctx[self.needs[0]].square().sum() + ctx[self.needs[1]].square().sum()


def beside_others() -> tuple[Objective, list[Batch], tuple[Term, ...]]:
    """Returns an objective with a term over the step and two others, one of them with a reference."""
    task = preference.Prefer(name="prefer", model="reference")
    terms = (TERM, task, Weights(name="weights"))
    packer = replace(preference.packer(task), needs=tuple(n for t in terms for n in t.needs), terms=terms)
    made, sized = objective(), preference.sized(SAMPLES, packer, task)
    made.terms = terms
    made.references = (Reference(nn.ModuleDict(), copy.deepcopy(made.lmm), {}),)
    return made, [pack(packer, part)[0] for part in (sized[:2], sized[2:])], terms


def test_the_first_pass_computes_only_what_its_terms_read(monkeypatch):
    made, batches, terms = beside_others()
    plain = FirstPass.of(made, batches, torch.device("cpu"), EVALUATION, ALONE).shares
    seen: list[str] = []
    for of, name in ((objective_module, "log_probs"), (objective_module, "linear_cross_entropy")):
        monkeypatch.setattr(of, name, lambda *args, name=name: seen.append(name))
    monkeypatch.setattr(Reference, "forward", lambda *args: seen.append("reference"))
    inner = made.lmm.backend.prepare
    specs = []
    monkeypatch.setattr(
        type(made.lmm.backend),
        "prepare",
        lambda self, spec, device: specs.append(spec) or inner(spec, device),
    )
    decoder = made.lmm.decoder.forward
    taken = []
    made.lmm.decoder.forward = lambda x, pos, fns, inner: (
        taken.append(set(inner)) or decoder(x, pos, fns, inner)
    )
    found = FirstPass.of(made, batches, torch.device("cpu"), EVALUATION, ALONE).shares
    assert not seen and len(specs) == 4 and not any(spec.maps for spec in specs)
    assert taken == [{0}, {0}], "the layer that the term reads, not that of the other"
    assert batches[0].attention.maps and set(batches[0].inner) == {0, 1}
    for one, other in zip(plain, found, strict=True):
        assert torch.equal(one["contrast"].d_items, other["contrast"].d_items)


def test_the_first_pass_beside_other_terms_gives_the_items_of_the_ordinary_pass():
    made, batches, _ = beside_others()
    ctxs = [made(batch).ctxs for batch in batches]
    for batch, want in zip(batches, ctxs, strict=True):
        read = made.step_inputs(batch, EVALUATION)
        assert set(read) == {"contrast"}
        off = (TERM.embed(read["contrast"]) - TERM.embed(want["contrast"])).abs().max()
        assert float(off.detach()) < 1e-14


@dataclass(frozen=True, kw_only=True)
class Certain(StepTerm):
    """Compares how probable the answers of a step are, in the model and in the reference."""

    needs = tuple(
        LogProb(Select(view="prefer", view_role="chosen", turn=-1), m) for m in ("policy", "reference")
    )

    def count(self, batch):
        return batch.samples_with(*self.needs)

    def embed(self, ctx):
        return torch.stack(ctx.by_sample(*self.needs), 1)

    def step_value(self, items, module):
        return (items.softmax(0) * items.log_softmax(0)).sum()


def test_a_term_over_the_step_may_read_the_head_and_the_reference():
    made, _, terms = beside_others()
    certain = Certain(name="certain")
    task = terms[1]
    packer = replace(preference.packer(task), needs=(*task.needs, *certain.needs), terms=(task, certain))
    batch, _ = pack(packer, preference.sized(SAMPLES, packer, task))
    made.terms = (task, certain)
    items = certain.embed(made.step_inputs(batch, EVALUATION)["certain"])
    want = certain.embed(made(batch).ctxs["certain"])
    assert torch.equal(items, want) and torch.equal(items[:, 0], items[:, 1].detach())


def test_parameters_that_the_value_reads_learn_once_a_rank():
    made, batches = objective(), packed([2, 4])
    items = [TERM.embed(made(batch).ctxs["contrast"]).detach() for batch in batches]
    found = shares(TERM, items, made.plugins["contrast"], lambda rows: (rows, 0), 3)
    assert [set(each.d_parameters) for each in found] == [{"log"}, set()]
    log = made.plugins["contrast"].log
    (want,) = torch.autograd.grad(TERM.step_value(torch.cat(items), made.plugins["contrast"]), [log])
    assert torch.equal(found[0].d_parameters["log"], want / 3)


def test_a_step_without_items_adds_nothing():
    made, batch = objective(), packed([0, 6])[0]
    first = FirstPass.of(made, [batch], torch.device("cpu"), EVALUATION, ALONE)
    assert first.shares == [{}]
    assert made(batch, EVALUATION, {}).sums["contrast"] == 0


def test_a_model_without_such_terms_runs_no_first_pass():
    made = paper_objective.objective()
    first = FirstPass.of(made, [None, None], torch.device("cpu"), EVALUATION, ALONE)
    assert first.shares == [{}, {}] and not first.states


def chat_model(made, *, samples: int):
    """Returns what evaluation needs of a model, in a stage of so many samples a step."""
    recipe = SimpleNamespace(
        stages={"s": SimpleNamespace(batch=SimpleNamespace(samples=samples))},
        speed=SimpleNamespace(tokens=10),
    )
    return SimpleNamespace(
        objective=made, packer=paper_objective.packer(terms=(TERM,)), views=paper_objective.views(), reader=read,
        stage="s", device="cpu", poll=lambda: None, prepared=SimpleNamespace(recipe=recipe),
    )  # fmt: skip


def keys(blocks) -> list[list[str]]:
    return [[each.members[0].view.sample.key for part in block for each in part] for block in blocks]


def test_evaluation_computes_blocks_of_as_many_samples_as_a_step():
    made = objective()
    chat, among = chat_model(made, samples=4), SourceSamples.among(SAMPLES)
    blocks = evaluation.step_blocks(chat, SAMPLES, Counter(), among)
    assert [sum(map(len, block)) for block in blocks] == [4, 2] and len(blocks[0]) > 1
    values, counts, _, _ = evaluation.term_sums(chat, blocks)
    want = 0.0
    for cut in (SAMPLES[:4], SAMPLES[4:]):
        sized = paper_objective.sized([sample for sample in cut if sample.images], chat.packer)
        items = [TERM.embed(made(pack(chat.packer, [each])[0]).ctxs["contrast"]) for each in sized]
        want += float(TERM.step_value(torch.cat(items), made.plugins["contrast"]).detach())
    assert counts["contrast"] == WITH_IMAGES and values["contrast"] == pytest.approx(want, rel=1e-12)


@pytest.mark.parametrize("world", [2, 3, 5])
@pytest.mark.parametrize("each", [1, 4, 5])
def test_ranks_share_the_blocks_of_one_process(world, each):
    chat, among = chat_model(objective(), samples=each), SourceSamples.among(SAMPLES)
    alone = keys(evaluation.step_blocks(chat, SAMPLES, Counter(), among))
    shares = [
        keys(evaluation.step_blocks(chat, SAMPLES[rank::world], Counter(), among, rank, world))
        for rank in range(world)
    ]
    together = [
        sorted(key for block in blocks for key in block) for blocks in zip_longest(*shares, fillvalue=[])
    ]
    assert together == [sorted(block) for block in alone]


class Wrong(Contrast):
    def embed(self, ctx):
        return super().embed(ctx)[:1]


def test_items_are_as_many_as_the_count():
    made = objective()
    made.terms = (Wrong(name="contrast"),)
    with pytest.raises(UserError, match="plugin/returned") as raised:
        two_passes(made, packed([6]))
    assert "contrast.embed" in str(raised.value) and "5 rows" in str(raised.value)
