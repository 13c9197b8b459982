"""Connectors: their kinds, their parameters, and the rows that an image takes, alone and in a model."""

from collections import Counter
from dataclasses import replace
from typing import get_args, get_type_hints

import pytest
import torch
import torch.nn.functional as F

from lmmkit import build
from lmmkit.api import HiddenAt, Select, VisionAt
from lmmkit.api.sample import Image, Sample, Turn, View
from lmmkit.data.fits.rows import FixedRows
from lmmkit.data.micro_batch.laid_out import LaidOut
from lmmkit.data.micro_batch.packed_images import read_images
from lmmkit.errors import UserError
from lmmkit.import_export import export_model
from lmmkit.inference.image_attention import image_attention
from lmmkit.inference.load import find_model_folder, load
from lmmkit.model.connectors.kinds import CONNECTORS, build_connector, connector_rows
from lmmkit.model.connectors.mlp import LinearConnector, MlpConnector
from lmmkit.model.vision import ViT
from lmmkit.plan.explain import plan_text
from lmmkit.plan.prepare import prepare, prepare_bare
from lmmkit.recipe import ConnectorConfig, Speed
from lmmkit.training.run import train
from tests.conftest import DIRECT, PLAIN
from tests.model.connectors.test_squares import by_hand
from tests.support import hf_model_folders, paper_objective, plain_twins
from tests.support.all_gradients import all_gradients, gradient_errors
from tests.support.fake_cuda import on_card
from tests.support.hf_weights import scramble
from tests.support.plain_twins import off
from tests.support.random_chat_model import random_chat_model
from tests.support.tiny_model import SPEC, TEXT, VISION, pack, pixels
from tests.test_objective_needs import Reads, smooth

BLOCK = ["query_norm.weight", "token_norm.weight", "q.weight", "kv.weight", "out.weight", "mlp_norm.weight"]
BLOCK += ["mlp.gate_up.weight", "mlp.down.weight"]
NAMES = {
    "linear": ["first.weight", "first.bias"],
    "mlp2x_gelu": ["first.weight", "first.bias", "second.1.weight", "second.1.bias"],
    "none": [],
    "pixel_shuffle": ["first.weight"],
    "average_pool": ["first.weight", "first.bias", "second.1.weight", "second.1.bias"],
    "resampler": [
        "first.weight", "first.bias", "queries.weight",
        *(f"blocks.{n}.{name}" for n in range(2) for name in BLOCK), "norm.weight",
    ],
}  # fmt: skip
ASKED = {
    **{kind: ConnectorConfig(kind=kind) for kind in ("linear", "mlp2x_gelu", "none")},
    **{kind: ConnectorConfig(kind=kind, factor=2) for kind in ("pixel_shuffle", "average_pool")},
    "resampler": ConnectorConfig(kind="resampler", queries=5, heads=2),
}
FEWER = ("pixel_shuffle", "average_pool", "resampler")
GRID = (6, 6)
SAMPLES = (*paper_objective.CAPTIONS, *paper_objective.CHATS)


def test_the_recipe_names_the_kinds_that_exist_and_no_other_kind_is_built():
    assert get_args(get_type_hints(ConnectorConfig)["kind"]) == tuple(CONNECTORS) == tuple(ASKED)
    with pytest.raises(KeyError):
        CONNECTORS["mlp3x_gelu"]


@pytest.mark.parametrize("kind", CONNECTORS)
def test_names_of_parameters_stay(kind):
    """They key the initial values, the checkpoints and the public weights."""
    made = build_connector(ASKED[kind], 4, 6, (2, 4))
    assert [name for name, _ in made.named_parameters()] == NAMES[kind]


@pytest.mark.parametrize("kind", CONNECTORS)
@pytest.mark.parametrize("grid", [(4, 4), (2, 6)])
def test_an_image_takes_as_many_rows_as_the_connector_returns(kind, grid):
    connector = build_connector(ASKED[kind], 4, 6, grid)
    x_IND = torch.randn(2, grid[0] * grid[1], 4)
    rows = connector_rows(ASKED[kind], grid)
    assert connector(x_IND).shape == (2, rows, 4 if kind == "none" else 6)
    assert (connector(x_IND) is x_IND) == (kind == "none")
    want = {"pixel_shuffle": len(x_IND[0]) // 4, "average_pool": len(x_IND[0]) // 4, "resampler": 5}
    assert rows == want.get(kind, len(x_IND[0]))


@pytest.mark.parametrize("kind", CONNECTORS)
def test_images_of_unlike_sizes_have_the_rows_of_each_alone(kind):
    """Compares values and gradients with a connector for each grid that has the same parameters."""
    grids, draw = [(2, 6), (4, 4), (2, 2)], torch.Generator().manual_seed(0)
    alone = [build_connector(ASKED[kind], 4, 6, grid).double() for grid in grids]
    scramble(alone[0], 0)
    for each in alone[1:]:
        each.load_state_dict(alone[0].state_dict())
    made = build_connector(ASKED[kind], 4, 6, (6, 6)).double()
    made.load_state_dict(alone[0].state_dict())
    x_RD = torch.randn(32, 4, dtype=torch.float64, generator=draw, requires_grad=True)
    each = x_RD.split([lines * columns for lines, columns in grids])
    want = torch.cat([c(x_ND[None])[0] for c, x_ND in zip(alone, each, strict=True)])
    got = made.packed(x_RD, grids)
    assert got.shape == want.shape and off(got, want) < 1e-12
    assert len(got) == sum(connector_rows(ASKED[kind], grid) for grid in grids)
    (got_x,), (want_x,) = (torch.autograd.grad(smooth(x), [x_RD], retain_graph=True) for x in (got, want))
    assert off(got_x, want_x) < 1e-12 and want_x.abs().max() > 0
    found = torch.autograd.grad(smooth(got), list(made.parameters())) if kind != "none" else ()
    for n, gradient in enumerate(found):
        each = [
            torch.autograd.grad(smooth(want), list(c.parameters()), retain_graph=True, allow_unused=True)
            for c in alone
        ]
        assert off(gradient, sum(parts[n] for parts in each)) < 1e-11


def test_values():
    x_IND = torch.randn(2, 3, 4, generator=torch.Generator().manual_seed(0))
    linear, mlp = LinearConnector(4, 6, (1, 3)), MlpConnector(4, 6, (1, 3))
    for connector in (linear, mlp):
        scramble(connector, 0)
    assert torch.equal(linear(x_IND), F.linear(x_IND, linear.first.weight, linear.first.bias))
    hidden = F.gelu(F.linear(x_IND, mlp.first.weight, mlp.first.bias), approximate="none")
    assert torch.equal(mlp(x_IND), F.linear(hidden, mlp.second[1].weight, mlp.second[1].bias))


@pytest.mark.parametrize("kind", FEWER)
def test_stored_values_are_what_a_step_stores(kind):
    asked = {"factor": 2} if kind != "resampler" else {"queries": 16, "heads": 4}
    connector = build_connector(ConnectorConfig(kind=kind, **asked), 32, 48, (8, 8))
    x_IND = torch.randn(4, 64, 32)
    own, kept = {p.data_ptr() for p in connector.parameters()}, {}

    def keep(x):
        if x.untyped_storage().data_ptr() not in own:
            kept[x.untyped_storage().data_ptr()] = (x.untyped_storage().nbytes() // 4, x)
        return x

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda x: x):
        connector(x_IND)
    measured = sum(values for values, _ in kept.values())
    assert 0.85 < connector.stored_values(4 * 64) / measured < 1.15, (connector.stored_values(256), measured)


def objective(kind: str, dtype=torch.float64):
    """Returns the objective with an encoder of 6 x 6 patches and this connector."""
    made, image = paper_objective.objective(dtype=dtype), replace(SPEC, grid=GRID)
    made.lmm.vision = ViT(replace(VISION, patch=2, image=image), made.lmm.backend)
    made.lmm.connector = build_connector(ASKED[kind], SPEC.width, TEXT.width, GRID)
    for n, part in enumerate((made.lmm.vision, made.lmm.connector)):
        scramble(part, n)
        part.to(dtype)
    return made


def packed(kind: str, terms):
    views = replace(paper_objective.views(), rows_of=FixedRows(connector_rows(ASKED[kind], GRID)))
    packer = paper_objective.packer(terms=terms)
    members = [views.fitting(sample, 0, Counter()) for sample in SAMPLES]
    batch, _ = pack(packer, [packer.sized(each) for each in members])
    return batch, [member for each in members for member in each]


def plain(made, seen_NE: torch.Tensor) -> torch.Tensor:
    """Returns the rows of one image, written out by hand."""
    connector = made.lmm.connector
    if connector.fixed_patches:
        squares = [[seen_NE[i] for i in numbers] for numbers in by_hand(GRID, 2)]
        if len(list(connector.parameters())) == 1:
            return torch.stack([torch.cat(square) for square in squares]) @ connector.first.weight.T
        x = torch.stack([sum(square) / 4 for square in squares]) @ connector.first.weight.T
        x = F.gelu(x + connector.first.bias)
        return x @ connector.second[1].weight.T + connector.second[1].bias

    def norm(x, module):
        return x / (x.pow(2).mean(-1, keepdim=True) + 1e-6).sqrt() * module.weight

    tokens_ND = seen_NE @ connector.first.weight.T + connector.first.bias
    x_QD = connector.queries.weight
    for block in connector.blocks:
        query_QD = norm(x_QD, block.query_norm)
        both = torch.cat([norm(tokens_ND, block.token_norm), query_QD])
        q, k, v = query_QD @ block.q.weight.T, *(both @ block.kv.weight.T).split(TEXT.width, 1)
        size, heads = TEXT.width // 2, []
        for h in range(2):
            at = slice(h * size, (h + 1) * size)
            heads.append((q[:, at] @ k[:, at].T / size**0.5).softmax(1) @ v[:, at])
        x_QD = x_QD + torch.cat(heads, 1) @ block.out.weight.T
        gate, up = (norm(x_QD, block.mlp_norm) @ block.mlp.gate_up.weight.T).chunk(2, 1)
        x_QD = x_QD + (F.silu(gate) * up) @ block.mlp.down.weight.T
    return norm(x_QD, connector.norm)


def dense(made, layout, fit) -> torch.Tensor:
    """Returns the states of one view alone after the final norm."""

    def rows(span):
        if span.kind == "text":
            return made.lmm.decoder.embed(torch.tensor(span.ids))
        if span.kind != "image":
            return made.plugins["directed_token"]()
        return plain(made, made.lmm.vision(pixels(span.image, fit)[None].to(made.lmm.decoder.norm.weight))[0])

    return plain_twins.decoder(made.lmm.decoder, torch.cat([rows(span) for span in layout]))[0]


@pytest.mark.parametrize("recompute", ["none", pytest.param("all", marks=pytest.mark.slow)])
@pytest.mark.parametrize("kind", FEWER)
def test_packed_rows_are_those_of_the_views_alone(kind, recompute):
    """In all views: those of the order tasks with their shuffled images and their learned token too."""
    made, views = objective(kind), ("main", "image_order", "text_order")
    build.set_layers(made, Speed(recompute=recompute))
    term = Reads(name="reads", read=tuple(HiddenAt(Select(view=view)) for view in views))
    batch, members = packed(kind, (*paper_objective.TERMS, term))
    made.terms = (*paper_objective.TERMS, term)
    outcome = made(batch)
    want = [
        torch.cat([dense(made, m.layout, m.view.sample.image_fit) for m in members if m.view.name == view])
        for view in views
    ]
    for need, rows in zip(term.read, want, strict=True):
        assert off(outcome.ctxs["reads"][need], rows) < 1e-12
    loss = torch.stack([smooth(rows) for rows in want]).sum()
    got_gradients, want_gradients = all_gradients(made, outcome.sums["reads"]), all_gradients(made, loss)
    for name, error in gradient_errors(got_gradients, want_gradients).items():
        assert error < 1e-11, name
    for name, g in want_gradients.items():
        assert "connector" not in name or float(g.abs().max()) > 0, name


def test_vision_features_of_a_row_are_the_mean_of_its_square():
    made, term = objective("pixel_shuffle"), Reads(name="reads", read=(VisionAt(Select(kind="image")),))
    batch, members = packed("pixel_shuffle", (term,))
    made.terms = (term,)
    found = made(batch).ctxs["reads"][term.read[0]]
    want = [
        made.lmm.vision(pixels(span.image, m.view.sample.image_fit)[None].double())[0][numbers].mean(0)
        for m in members if m.view.name == "main"
        for span in m.layout if span.kind == "image"
        for numbers in by_hand(GRID, 2)
    ]  # fmt: skip
    assert off(found, torch.stack(want)) < 1e-12


@pytest.mark.parametrize("kind", FEWER)
def test_on_a_card_no_connector_waits_for_the_device(kind):
    term = Reads(name="reads", read=(VisionAt(Select(kind="image"), stage="projected"),))
    made, (batch, _) = objective(kind, torch.float32), packed(kind, (term,))
    made.terms, made.compute = (term,), torch.bfloat16
    with on_card(made) as rules:
        outcome = made(batch.to("cuda"))
    assert rules.waited == [] and "reads" in outcome.sums


SETTINGS = {
    "pixel_shuffle": "{kind: pixel_shuffle, factor: 2}",
    "average_pool": "{kind: average_pool, factor: 3}",
    "resampler": "{kind: resampler, queries: 7, depth: 1, heads: 4}",
}
ROWS = {"pixel_shuffle": 9, "average_pool": 4, "resampler": 7}


@pytest.mark.parametrize("kind", FEWER)
def test_a_model_is_planned_trained_saved_asked_and_not_exported(kind, tiny, scenes, tmp_path):
    recipe = tiny("model.vision.patch=4", f"model.connector={SETTINGS[kind]}", text=DIRECT)
    prepared = prepare(recipe)
    assert prepared.image_rows == ROWS[kind] == prepare_bare(recipe).image_rows
    assert f"image {ROWS[kind]} rows from 36 tokens by the connector, {kind}" in plan_text(prepared)
    run = train(recipe, out=tmp_path / "run").run
    assert all(line["terms/image_order"] > 0 for line in run.read_metrics() if "terms/image_order" in line)
    chat = load(run.path)
    assert chat.prepared.image_rows == ROWS[kind]
    path = str(sorted((scenes / "images" / "heldout").iterdir())[0])
    assert isinstance(chat.reply("Is there a circle?", path, max_new_tokens=4), str)
    for form in ("llava-hf", "llava"):
        with pytest.raises(UserError, match="another connector"):
            export_model(run.path, tmp_path / form, form)
    folder = find_model_folder(run.path)
    again = tiny("model.vision.patch=4", f"model.connector={SETTINGS[kind][:-1]}, from: {folder}}}")
    fresh = prepare(again)
    made = build.build_objective(
        fresh.recipe, {}, fresh.dims, torch.device("cpu"), pretrained=fresh.pretrained
    )
    for name, p in chat.objective.lmm.connector.named_parameters():
        assert torch.equal(p, made.lmm.connector.get_parameter(name)), name


def test_a_folder_whose_connector_has_more_than_the_recipe_s_is_refused(tiny, tmp_path):
    """Would fit with the first of its two matrices, and leave the second one out."""
    recipe = tiny("model.connector={kind: mlp2x_gelu}")
    folder = find_model_folder(train(recipe, out=tmp_path / "run").run.path)
    wrong = prepare_bare(tiny(f"model.connector={{kind: linear, from: {folder}}}"))
    with pytest.raises(UserError) as raised:
        build.check_pretrained(wrong.recipe, wrong.dims, wrong.pretrained, torch.device("cpu"))
    found = {problem.where.rpartition(" ")[2] for problem in raised.value.problems}
    assert found == {"lmm.connector.second.1.weight", "lmm.connector.second.1.bias"}
    assert {problem.code for problem in raised.value.problems} == {"model/extra-tensors"}


@pytest.mark.parametrize("kind", FEWER)
def test_the_attention_of_an_answer_is_drawn_on_the_patches(kind, tiny, scenes):
    chat = random_chat_model(tiny("model.vision.patch=4", f"model.connector={SETTINGS[kind]}"))
    path = str(sorted((scenes / "images" / "heldout").iterdir())[0])
    turns = (Turn("user", "Is there a circle?", images=1), Turn("assistant", "Yes, it is red."))
    view = View(sample=Sample(key="s", turns=turns, images=(Image(path),)))
    sample = chat.packer.sized([LaidOut(view, chat.views.lay_out(view))])
    images = read_images([sample], chat.reader)
    found = image_attention(chat.objective, chat.packer, sample, images, chat.device)
    if kind == "resampler":
        assert found.map_XY is None and 0 < found.mass < 1
        return
    factor = {"pixel_shuffle": 2, "average_pool": 3}[kind]
    assert found.map_XY.shape == (6, 6) and float(found.map_XY.sum()) == pytest.approx(found.mass, rel=1e-5)
    squares = found.map_XY.flatten()[torch.tensor(by_hand((6, 6), factor))]
    assert torch.equal(squares, squares[:, :1].expand_as(squares)) and len(set(squares[:, 0].tolist())) > 1


@pytest.mark.parametrize(
    ("connector", "key", "code"),
    [
        ("{kind: pixel_shuffle, factor: 4}", "factor", "plan/connector"),
        ("{kind: average_pool, factor: 5}", "factor", "plan/connector"),
        ("{kind: resampler, queries: 4, heads: 5}", "heads", "plan/connector"),
        ("{kind: pixel_shuffle}", "kind", "recipe/conflict"),
        ("{kind: resampler}", "kind", "recipe/conflict"),
        ("{kind: mlp2x_gelu, factor: 2}", "factor", "recipe/conflict"),
        ("{kind: average_pool, factor: 2, queries: 3}", "queries", "recipe/conflict"),
        ("{kind: resampler, queries: 300}", None, "recipe/conflict"),
        ("{kind: average_pool, factor: 1}", "factor", "recipe/out-of-range"),
        ("{kind: average_pool, factor: 2.0}", "factor", "recipe/wrong-type"),
        ("{kind: pixel_shuffle, factor: 2, reduce: kept}", "reduce", "recipe/conflict"),
    ],
)
def test_settings_that_do_not_fit_are_refused(connector, key, code, tiny):
    text = PLAIN.replace("stages:", "plugins:\n  kept: {use: keep_tokens, count: 4}\nstages:", 1)
    with pytest.raises(UserError) as error:
        prepare(tiny("model.vision.patch=4", f"model.connector={connector}", text=text))
    (problem,) = error.value.problems
    where = "model.text.context" if key is None else f"model.connector.{key}"
    assert problem.code == code and where in problem.where and problem.hint


def test_features_at_the_rows_of_a_resampler_are_refused(tiny, tmp_path):
    (tmp_path / "reader.py").write_text(
        "from dataclasses import dataclass\n"
        "from lmmkit.api import Loss, Select, VisionAt, hookimpl\n"
        "@dataclass(frozen=True, kw_only=True)\n"
        "class Reader(Loss):\n"
        "    needs = (VisionAt(Select(kind='image')),)\n"
        "    def value(self, ctx):\n"
        "        return ctx[self.needs[0]].float().square().mean(-1).sum()\n"
        "@hookimpl\n"
        "def lmmkit_components():\n"
        "    return {'reader': Reader}\n"
    )
    text = PLAIN.replace("stages:", f"plugins:\n  reader: {{use: {tmp_path / 'reader.py'}}}\nstages:", 1)
    text = text.replace("{next_token: 1.0}", "{next_token: 1.0, reader: 0.1}")
    with pytest.raises(UserError) as error:
        prepare(tiny("model.connector={kind: resampler, queries: 4}", text=text), trust_files=True)
    assert {p.code for p in error.value.problems} == {"plan/patches"}
    assert "`resampler`" in error.value.problems[0].got
    assert prepare(tiny("model.connector={kind: average_pool, factor: 3}", text=text), trust_files=True)


def test_a_resampler_takes_no_weights_from_a_public_folder(tiny, tmp_path):
    folder = hf_model_folders.saved(hf_model_folders.llava("llama", "clip", "plain"), tmp_path / "hf")
    recipe = tiny(f"model.connector={{kind: resampler, queries: 4, from: {folder}}}")
    made = prepare(recipe)
    with pytest.raises(UserError, match="weights/missing-tensors"):
        build.check_pretrained(made.recipe, made.dims, made.pretrained, torch.device("cpu"))
