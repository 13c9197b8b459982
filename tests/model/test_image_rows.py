"""Image reducers: packed rows are those of the views alone, in training and in generation, and faults are named."""

from __future__ import annotations

import copy
import math
from collections import Counter
from dataclasses import dataclass, replace

import pytest
import torch
from lmmkit_zoo.keep_tokens import KeepTokens
from torch import Tensor, nn

from lmmkit import build
from lmmkit.api import HiddenAt, ImageReducer, Select, View, VisionAt
from lmmkit.data.fits.rows import FixedRows
from lmmkit.data.micro_batch.laid_out import LaidOut
from lmmkit.errors import UserError
from lmmkit.inference.generate import generate
from lmmkit.model.connectors.connector import NoConnector
from lmmkit.model.connectors.mlp import MlpConnector
from lmmkit.model.image_rows import ImageRows, ReducedRows
from lmmkit.plan.explain import plan_text
from lmmkit.plan.notices import notices
from lmmkit.plan.prepare import prepare, prepare_bare
from lmmkit.recipe import Speed
from tests.conftest import PLAIN
from tests.inference.test_generate import NEVER, Kept
from tests.support import paper_objective, plain_twins
from tests.support.all_gradients import all_gradients, gradient_errors
from tests.support.fake_cuda import on_card
from tests.support.hf_weights import scramble
from tests.support.plain_twins import off, show
from tests.support.tiny_model import pack, pixels
from tests.test_objective_needs import Reads, smooth

SAMPLES = (*paper_objective.CAPTIONS, *paper_objective.CHATS)
DIMS = paper_objective.DIMS  # a grid of 3 x 3
STRIPS = ((0, 1, 2), (3, 4, 5), (6, 7, 8))


@dataclass(frozen=True, kw_only=True)
class Pool(ImageReducer):
    """Makes one row of each strip of three patches: their mean, after the connector."""

    def tokens(self, dims):
        return 3

    def patches(self, dims):
        return STRIPS

    def reduce(self, features_INE, connect, module):
        return connect(features_INE).unflatten(1, (3, 3)).mean(2)


@dataclass(frozen=True, kw_only=True)
class Join(Pool):
    """Joins the features of a strip by a linear layer of its own, before the connector."""

    def modules(self, dims):
        return nn.Linear(3 * dims.image.width, dims.image.width)

    def reduce(self, features_INE, connect, module):
        return connect(module(features_INE.unflatten(1, (3, 3)).flatten(2)))


@dataclass(frozen=True, kw_only=True)
class Own(Pool):
    """Is the connector itself: maps the features of a strip to the decoder."""

    connects = True

    def modules(self, dims):
        return nn.Sequential(nn.Linear(3 * dims.image.width, dims.width), nn.GELU())

    def reduce(self, features_INE, connect, module):
        return module(connect(features_INE).unflatten(1, (3, 3)).flatten(2))


REDUCERS = (Pool(name="reduce"), Join(name="reduce"), KeepTokens(name="reduce", count=4), Own(name="reduce"))


def plain(made, reducer, image) -> Tensor:
    """Returns the rows of one image, written out by hand."""
    seen_NE = made.lmm.vision(pixels(*image)[None].to(made.lmm.decoder.norm.weight))[0]
    if isinstance(reducer, Own):
        linear = made.plugins["reduce"][0]
        joined = torch.stack([torch.cat([seen_NE[i] for i in strip]) for strip in STRIPS])
        x = joined @ linear.weight.T + linear.bias
        return x * (1 + torch.erf(x / math.sqrt(2))) / 2
    if isinstance(reducer, Join):
        joined = torch.stack([torch.cat([seen_NE[i] for i in strip]) for strip in STRIPS])
        linear = made.plugins["reduce"]
        return made.lmm.connector((joined @ linear.weight.T + linear.bias)[None])[0]
    if isinstance(reducer, Pool):
        rows_ND = made.lmm.connector(seen_NE[None])[0]
        return torch.stack([sum(rows_ND[i] for i in strip) / 3 for strip in STRIPS])
    mean = seen_NE.mean(0)
    alike = [(x @ mean / (x.norm() * mean.norm())).item() for x in seen_NE]
    kept = sorted(sorted(range(len(alike)), key=lambda i: alike[i])[: reducer.count])
    return made.lmm.connector(seen_NE[kept][None])[0]


def dense(made, reducer, layout, fit) -> Tensor:
    """Returns the states of one view alone after the final norm."""
    rows = [
        made.lmm.decoder.embed(torch.tensor(span.ids))
        if span.kind == "text"
        else plain(made, reducer, (span.image, fit))
        for span in layout
    ]
    return plain_twins.decoder(made.lmm.decoder, torch.cat(rows))[0]


def objective(reducer, dtype=torch.float64):
    made = paper_objective.objective(dtype=dtype)
    module = reducer.modules(DIMS)
    made.plugins = nn.ModuleDict({} if module is None else {"reduce": module})
    scramble(made.plugins, 4)
    made.to(dtype)
    made.lmm.image_rows = ReducedRows(reducer, module, DIMS)
    if reducer.connects:
        made.lmm.connector = NoConnector(DIMS.image.width, DIMS.width, DIMS.image.grid)
    return made


def packed(reducer, terms):
    views = replace(
        paper_objective.views(),
        rows_of=FixedRows(reducer.tokens(DIMS)),
        edits=(),
        tasks=paper_objective.views().tasks[1:],
    )
    packer = replace(paper_objective.packer(terms=terms), text_terms=("next_token", "text_order"))
    members = [views.fitting(sample, 0, Counter()) for sample in SAMPLES]
    batch, _ = pack(packer, [packer.sized(each) for each in members])
    return batch, [member for each in members for member in each]


@pytest.mark.parametrize("recompute", ["none", "all"])
@pytest.mark.parametrize("reducer", REDUCERS, ids=lambda r: type(r).__name__)
@pytest.mark.parametrize(("dtype", "limit"), [(torch.float64, 1e-12), (torch.float32, 5e-6)])
def test_reduced_rows_are_those_of_the_views_alone(reducer, recompute, dtype, limit):
    made, need = objective(reducer, dtype), HiddenAt(Select())
    build.set_layers(made, Speed(recompute=recompute))
    term = Reads(name="reads", read=(need,))
    batch, members = packed(reducer, (term,))
    made.terms = (term,)
    outcome = made(batch)
    mains = [m for m in members if m.view.name == "main"]
    want = torch.cat([dense(made, reducer, m.layout, m.view.sample.image_fit) for m in mains])
    assert off(outcome.ctxs["reads"][need], want) < limit
    got_gradients, want_gradients = (
        all_gradients(made, outcome.sums["reads"]),
        all_gradients(made, smooth(want)),
    )
    errors = gradient_errors(got_gradients, want_gradients)
    show("off_gradients", max(errors.values()))
    assert max(errors.values()) < limit, errors
    assert all(
        float(want_gradients[name].abs().max()) > 0
        for name in want_gradients
        if "connector" in name or "plugins" in name
    )


@torch.no_grad()
@pytest.mark.parametrize("reducer", REDUCERS, ids=lambda r: type(r).__name__)
def test_generation_uses_the_same_rows(reducer):
    made = objective(reducer)
    views = replace(paper_objective.views(), rows_of=FixedRows(reducer.tokens(DIMS)), edits=())
    packer = paper_objective.packer(terms=())
    asked = [replace(sample, turns=sample.turns[:1]) for sample in SAMPLES]
    asked_views = [View(sample=sample) for sample in asked]
    members = [[LaidOut(view, views.prompt(view))] for view in asked_views]
    batch, paths = pack(packer, [packer.sized(each) for each in members])
    kept = Kept()
    answers = generate(
        made.lmm, batch, [int(p[-1]) for p in paths], tokens={}, max_new_tokens=4, eos=NEVER, choose=kept
    )
    for i, ((member,), answer) in enumerate(zip(members, answers, strict=True)):
        rows = list(member.layout)
        for step, token in enumerate(answer):
            hidden_TD = dense(made, reducer, rows, member.view.sample.image_fit)
            assert off(kept.logits[step][i], made.lmm.logits(hidden_TD[-1:])[0]) < 1e-12
            rows.append(replace(rows[-1], kind="text", ids=(token,), n=1, image=None))


def test_vision_features_of_reduced_rows_are_the_means_of_their_patches():
    reducer = REDUCERS[1]
    made, need = objective(reducer), VisionAt(Select(kind="image"))
    term = Reads(name="reads", read=(need, VisionAt(Select(kind="image"), stage="projected")))
    batch, members = packed(reducer, (term,))
    made.terms = (term,)
    ctx = made(batch).ctxs["reads"]
    images = [
        (s.image, m.view.sample.image_fit)
        for m in members
        if m.view.name == "main"
        for s in m.layout
        if s.image
    ]
    seen = [made.lmm.vision(pixels(*image)[None].to(torch.float64))[0] for image in images]
    want = torch.cat([torch.stack([x[list(strip)].mean(0) for strip in STRIPS]) for x in seen])
    assert off(ctx[need], want) < 1e-12
    assert off(ctx[term.read[1]], torch.cat([plain(made, reducer, image) for image in images])) < 1e-12


def test_on_a_card_reduced_rows_and_learned_tokens_do_not_wait_for_the_device():
    for reducer in REDUCERS:
        needs = (VisionAt(Select(kind="image"), stage="projected"), VisionAt(Select(kind="image")))
        term = Reads(name="reads", read=needs[: 1 + isinstance(reducer, Pool)])
        made, (batch, _) = objective(reducer, torch.float32), packed(reducer, (term,))
        made.terms, made.compute = (term,), torch.bfloat16
        with on_card(made) as rules:
            outcome = made(batch.to("cuda"))
        assert rules.waited == [] and "reads" in outcome.sums


def test_weights_of_rows_go_to_their_patches():
    weight_N, mlp = torch.tensor([0.3, 0.6, 0.0]), MlpConnector(4, 6, (2, 3))
    pool, keep = (ReducedRows(r, None, DIMS) for r in (REDUCERS[0], REDUCERS[2]))
    assert off(pool.on_patches(weight_N, mlp), torch.tensor([[0.1] * 3, [0.2] * 3, [0.0] * 3])) < 1e-6
    assert keep.on_patches(torch.rand(4), mlp) is None
    assert torch.equal(ImageRows().on_patches(torch.arange(6), mlp), torch.arange(6).view(2, 3))


def test_a_copy_of_a_model_uses_its_own_module():
    made = objective(REDUCERS[1])
    copied = copy.deepcopy(made)
    assert copied.lmm.image_rows.module is copied.plugins["reduce"] is not made.plugins["reduce"]


def test_kept_tokens_do_not_depend_on_the_rest_of_the_batch():
    features_INE = torch.randn(64, 36, 24, generator=torch.Generator().manual_seed(0))
    reducer = KeepTokens(name="r", count=9)
    together = reducer.reduce(features_INE, lambda x: x, None)
    alone = torch.cat([reducer.reduce(x[None], lambda x: x, None) for x in features_INE])
    assert torch.equal(together, alone) and together.shape == (64, 9, 24)
    same = reducer.reduce(torch.ones(1, 36, 24), lambda x: x, None)
    assert same.shape == (1, 9, 24)
    assert reducer.check(DIMS) == "" == replace(reducer, count=1).check(DIMS)
    assert all(replace(reducer, count=count).check(DIMS).startswith("count") for count in (0, 10))


FILE = """
from dataclasses import dataclass
import torch
from lmmkit.api import ImageReducer, Loss, Select, VisionAt, hookimpl

@dataclass(frozen=True, kw_only=True)
class Mine(ImageReducer):
    def tokens(self, dims):
        return {tokens}
    def patches(self, dims):
        return {patches}
    def reduce(self, seen, connect, module):
        return {reduce}

@dataclass(frozen=True, kw_only=True)
class Reader(Loss):
    needs = (VisionAt(Select(kind="image")),)
    def value(self, ctx):
        return ctx[self.needs[0]].float().square().mean(-1).sum()

@hookimpl
def lmmkit_components():
    return {{"mine": Mine, "reader": Reader}}
"""
SOUND = {"tokens": "4", "patches": "None", "reduce": "connect(seen[:, :4])"}
ON = "model.connector.reduce=mine"


@pytest.fixture
def recipe(tiny, tmp_path):
    """recipe(*overrides, read, tokens, patches, reduce) -> a recipe with a reducer from a file."""

    def make(*overrides: str, read: bool = False, **body: str):
        file = tmp_path / "mine.py"
        file.write_text(FILE.format(**SOUND | body))
        uses = f"plugins:\n  mine: {{use: {file}}}\n" + f"  reader: {{use: {file}}}\n" * read
        text = PLAIN.replace("stages:", f"{uses}stages:", 1)
        text = text.replace("{next_token: 1.0}", "{next_token: 1.0, reader: 0.1}") if read else text
        return tiny(*overrides, text=text)

    return make


def test_the_plan_has_the_rows_of_the_reducer(recipe):
    made = prepare(recipe(ON), trust_files=True)
    assert made.image_rows == 4 and made.plans["pretrain"].inference_plugins == ("mine",)
    assert "image 4 rows from 9 tokens by mine" in plan_text(made) and not [
        n for n in notices(made) if "mine" in n
    ]
    batch = made.pipeline("pretrain").step(0)[0]
    assert all(len(s.row_N) % 4 == 0 for s in batch.scatters)
    bare = prepare_bare(recipe(ON), trust_files=True)
    assert bare.image_rows == 4 and bare.plans["pretrain"].reducer is not None
    off = prepare(recipe(), trust_files=True)
    assert off.image_rows == 9 and "does not name it" in off.plans["pretrain"].off["mine"]
    assert any("mine" in line and "keep all their rows" in line for line in notices(off))
    assert made.plans["pretrain"].digest != off.plans["pretrain"].digest


@pytest.mark.parametrize(
    ("body", "code"),
    [
        ({"tokens": "0"}, "plugin/returned"),
        ({"tokens": "4.0"}, "plugin/returned"),
        ({"tokens": "5"}, "plugin/returned"),
        ({"reduce": "seen[:, :4, :5]"}, "plugin/returned"),
        ({"reduce": "connect(seen[:1, :4])"}, "plugin/returned"),
        ({"reduce": "None"}, "plugin/returned"),
        ({"reduce": "connect(seen[:, 99])[1, 2, 3, 4]"}, "plugin/raised"),
        ({"patches": "[[0], [1], [2]]"}, "plugin/returned"),
        ({"patches": "[[0], [1], [2], [9]]"}, "plugin/returned"),
        ({"patches": "[[0], [1], [2], [3, 4]]"}, "plugin/returned"),
        ({"patches": "dims.no_such_size"}, "plugin/raised"),
    ],
)
def test_a_reducer_that_does_not_do_what_it_declares_is_refused(recipe, body, code):
    with pytest.raises(UserError) as error:
        prepare(recipe(ON, **body), trust_files=True)
    assert [p.code for p in error.value.problems] == [code] and "mine" in error.value.problems[0].where


def test_what_is_no_reducer_and_features_without_fixed_patches_are_refused(recipe):
    for overrides, code in (
        (("model.connector.reduce=reader",), "plan/not-a-reducer"),
        ((ON,), "plan/patches"),
        (("model.connector={kind: none, reduce: mine}",), "plan/connects"),
    ):
        with pytest.raises(UserError) as error:
            prepare(recipe(*overrides, read=True), trust_files=True)
        assert {p.code for p in error.value.problems} == {code}
    with pytest.raises(UserError, match="plan/connects"):
        prepare(recipe(ON, patches="None\n    connects = True"), trust_files=True)
    fixed = recipe(ON, read=True, patches="[[0], [1], [2], [3]]")
    assert prepare(fixed, trust_files=True).image_rows == 4
    with pytest.raises(UserError, match="recipe/unknown-name"):
        recipe("model.connector.reduce=mien")
