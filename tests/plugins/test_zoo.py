"""The zoo: every file is small and names its paper, every component has a recipe that trains."""

from __future__ import annotations

import ast
import json
import math
import re
import shutil
import tomllib
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from lmmkit_zoo.attention_box import AttentionBox, covered
from lmmkit_zoo.cal import Blind, Cal
from lmmkit_zoo.contrast import Apart, Contrast
from lmmkit_zoo.distill import Distill, DistillStored
from lmmkit_zoo.dpo import Cropped, Dpo
from lmmkit_zoo.focal import Focal
from lmmkit_zoo.label_smoothing import LabelSmoothing
from lmmkit_zoo.points import COLOURS, Marked, Points, turned
from lmmkit_zoo.reconstruct import Reconstruct
from lmmkit_zoo.rotation import Colour, Exchanged, Rotation, Turned
from lmmkit_zoo.viral import Viral
from lmmkit_zoo.word_weights import WordWeights
from lmmkit_zoo.z_loss import ZLoss
from typer.testing import CliRunner

from lmmkit.api import Ctx, Image, ImageSpec, Sample, TeacherAt, Turn, View, VisionAt
from lmmkit.cli import app
from lmmkit.model.init import init
from lmmkit.plan.dry_run.run import plugin_problems
from lmmkit.plan.prepare import prepare
from lmmkit.recipe import read_recipe
from lmmkit.testing import dry_run, fake_ctx
from lmmkit.training.run import train
from tests.support import paper_objective
from tests.support.tiny_model import pack

ROOT = Path(__file__).resolve().parents[2]
ZOO = ROOT / "plugins" / "lmmkit_zoo"
FILES = sorted(path for path in ZOO.glob("*.py") if path.name != "__init__.py")
RECIPES = sorted((ROOT / "recipes" / "zoo").glob("*.yaml"))
POINTS = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["entry-points"]["lmmkit.plugins"]
SAMPLE = Sample(
    key="s", images=(Image("a.jpg"), Image("b.jpg")),
    turns=(Turn("user", "what", images=2), Turn("assistant", "A cat.")),
)  # fmt: skip


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_a_file_has_at_most_a_hundred_lines_and_names_its_paper(path):
    text = path.read_text()
    about = ast.get_docstring(ast.parse(text)) or ""
    assert len(text.splitlines()) <= 100 and "arXiv" in about and "implified" in about


def test_every_component_is_declared_and_has_a_recipe():
    modules = {name: module for name, module in POINTS.items() if module.startswith("lmmkit_zoo.")}
    assert {module.removeprefix("lmmkit_zoo.") for module in modules.values()} == {
        path.stem for path in FILES
    }
    used = {name for path in RECIPES for name in read_recipe(path, root=ROOT).plugins}
    assert set(modules) <= used


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_a_recipe_trains(path, scenes, tmp_path, offered, monkeypatch):
    scenes = with_its_teacher(path, with_its_records(path, scenes, tmp_path, monkeypatch), tmp_path)
    stages = tuple(read_recipe(path, root=scenes).stages)
    short = [f"stages.{stage}.length.steps=4" for stage in stages]
    recipe = read_recipe(
        path, root=scenes, overrides=[*short, "output.save_every=0", "output.images_every=0"]
    )
    assert path.read_text().splitlines()[1] == (
        f"# Run:    lmmkit data make-scenes scenes && lmmkit train zoo/{path.stem} --root scenes"
    )
    plain = read_recipe(ROOT / "recipes" / "quickstart-llava.yaml", root=scenes)
    same = (recipe.model.vision, recipe.model.text) == (plain.model.vision, plain.model.text)
    assert same != path.stem.startswith("distill"), (
        "take its sizes, so that on and off can be compared; a student is smaller"
    )
    lines = train(recipe, out=tmp_path / "run").run.read_metrics()
    for stage in stages:
        for name in recipe.stages[stage].losses:
            found = [line[f"terms/{name}"] for line in lines if line["stage"] == stage]
            measured = [value for value in found if value is not None]
            assert len(found) == 4 and measured and np.isfinite(measured).all(), name
            assert len(set(measured)) == len(measured), name


def commands_before(path) -> list[str]:
    """Returns the commands in the header of a recipe that make a teacher."""
    before = path.read_text().partition("# First:")[2]
    return re.findall(r"(lmmkit (?:train|reference) .+)$", before, re.MULTILINE)


def with_its_teacher(path, scenes, tmp_path):
    """Returns the scenes; if the header of a recipe makes a teacher, a copy in which it was made, in few steps."""
    commands = commands_before(path)
    if commands:
        scenes = shutil.copytree(scenes, tmp_path / "scenes")
    for command in commands:
        words = [re.sub(r"^scenes\b", str(scenes), word) for word in command.split()[1:]]
        if words[0] == "train":
            words += ["--set", "stages.pretrain.length.steps=2", "--set", "stages.finetune.length.steps=2"]
        result = CliRunner().invoke(app, words)
        assert result.exit_code == 0, (command, result.output, result.exception)
    return scenes


def with_its_records(path, scenes, tmp_path, monkeypatch):
    """Returns the scenes; if the header of a recipe has lines of Python, a copy in which they were run."""
    code = [line.removeprefix("#> ") for line in path.read_text().splitlines() if line.startswith("#> ")]
    if not code:
        return scenes
    shutil.copytree(scenes, tmp_path / "scenes")
    with monkeypatch.context() as inside:
        inside.chdir(tmp_path / "scenes")
        exec("\n".join(code), {})
    return tmp_path / "scenes"


@pytest.fixture
def offered(monkeypatch):
    """Offers the components of this checkout, which the installed metadata may not list yet."""
    from importlib.metadata import EntryPoint

    from lmmkit import registry

    points = [EntryPoint(name, module, registry.GROUP) for name, module in POINTS.items()]
    monkeypatch.setattr(registry, "entry_points", lambda group: points)


def test_preferred_are_the_answer_of_the_record_and_its_image():
    turns = (*SAMPLE.turns, Turn("user", "where"), Turn("assistant", "On a mat."))
    talk, task = replace(SAMPLE, turns=turns), Dpo(name="dpo", crop=0.25)
    chosen, rejected, cropped = task.views(talk, np.random.default_rng(0))
    assert chosen.sample == talk and rejected.sample.turns == (*turns[:3], Turn("assistant", "A cat."))
    assert cropped.sample.turns == turns and cropped.sample.images[0].edit == cropped.sample.images[1].edit
    assert [v.role for v in (chosen, rejected, cropped)] == list(task.roles)
    given = replace(talk, meta={"rejected": "On a dog."})
    assert task.views(given, np.random.default_rng(0))[1].sample.turns[-1].text == "On a dog."
    assert len(Dpo(name="dpo").views(talk, np.random.default_rng(0))) == 2
    assert (
        len(
            task.views(
                replace(given, images=(), turns=(Turn("user", "x"), turns[1])), np.random.default_rng(0)
            )
        )
        == 2
    )
    assert task.views(SAMPLE, np.random.default_rng(0)) == [], "no other answer"
    assert task.views(replace(given, turns=turns[:3]), np.random.default_rng(0)) == []
    pixels = torch.arange(64.0).view(1, 8, 8)
    assert torch.equal(Cropped(1.0, 0.3, 0.9)(pixels), pixels)
    assert torch.equal(Cropped(0.125, 0.5, 1.0)(pixels), torch.full((1, 8, 8), 31.0))
    assert Dpo(name="d", crop=1.0).check(None).startswith("crop") and task.check(None) == ""


def ctx_of(term, need_values, **when):
    module = term.modules(paper_objective.DIMS)
    init(module, 0)
    return Ctx(term.name, None, dict(zip(term.needs, need_values, strict=True)), module, **when)


def test_focal_weights_are_those_of_the_paper():
    p = torch.tensor([0.1, 0.5, 1.0])
    ctx = Ctx("focal", None, {Focal(name="focal").needs[0]: p.log()}, None)
    assert Focal(name="focal", gamma=3.0).weigh(ctx).tolist() == pytest.approx([0.9**3, 0.5**3, 0.0])
    assert Focal(name="focal", gamma=0.0).weigh(ctx).tolist() == [1.0, 1.0, 1.0]
    assert Focal(name="focal", gamma=-1.0).check(None).startswith("gamma")


def test_words_and_patterns_are_found_whole_and_multiplied():
    made = WordWeights(
        name="words", words=(("red", 2.0), ("no", 0.0)), patterns=((r"\d+", 3.0), ("Red", 0.5))
    )
    text = "Red, not reddish. no 12 reds, RED"
    spans = made.spans(SAMPLE, text)
    assert sorted((text[a:b], weight) for a, b, weight in spans) == [
        ("12", 3.0), ("RED", 2.0), ("Red", 0.5), ("Red", 2.0), ("no", 0.0)
    ]  # fmt: skip
    phrase = WordWeights(name="words", words=(("a (red) cat", 2.0),))
    assert phrase.spans(SAMPLE, "It is a (red) cat.") == [(6, 17, 2.0)]
    assert made.check(paper_objective.DIMS) == ""
    for settings, key in (
        ({"words": (("", 1.0),)}, "words: "), ({"words": (("a", -1.0),)}, "words: "),
        ({"words": (), "patterns": (("(", 1.0),)}, "patterns: "),
        ({"words": (), "patterns": (("a", float("nan")),)}, "patterns: "),
    ):  # fmt: skip
        assert WordWeights(name="words", **settings).check(paper_objective.DIMS).startswith(key)


def test_cal_compares_each_token_with_that_of_the_view_without_images():
    term, blind = Cal(name="cal", low=0.5, high=2.0), Blind(name="blind")
    (view,) = blind.views(SAMPLE, None)
    assert view.sample.images == () and view.supervision == "read" and view.sample.turns[0].images == 0
    assert [turn.text for turn in view.sample.turns] == [turn.text for turn in SAMPLE.turns]
    assert blind.views(view.sample, None) == [] and Cal(name="c", low=2.0, high=1.0).check(None) != ""
    ctx = fake_ctx(term, blind)
    full, without = term.needs
    assert 0 < len(ctx[without]) <= len(ctx[full])
    at = ctx.beside(without, like=full, fill=math.inf)
    want = [
        1.0 if math.isinf(b) else min(max(float(a) - float(b), 0.5), 2.0)
        for a, b in zip(ctx[full].detach(), at.detach(), strict=True)
    ]
    assert term.weigh(ctx).tolist() == pytest.approx(want) and len(set(want)) > 5


def test_z_loss_and_label_smoothing_of_some_logits():
    logits, target = torch.randn(4, 9), torch.tensor([0, 3, 8, 3])
    ctx = Ctx("z", None, {ZLoss(name="z").needs[0]: logits.logsumexp(-1)}, None)
    squares = [math.log(sum(map(math.exp, row))) ** 2 for row in logits.tolist()]
    assert ZLoss(name="z").value(ctx).item() == pytest.approx(sum(squares), rel=1e-5)
    assert ZLoss(name="z").metrics(ctx)["log_sum_exp"].total == logits.logsumexp(-1).sum()
    smooth = LabelSmoothing(name="s", share=0.3)
    logp = logits.log_softmax(-1)
    want = [-(0.7 * row[t] + 0.3 * row.mean()).item() for row, t in zip(logp, target, strict=True)]
    assert smooth.rows(logits, target).tolist() == pytest.approx(want, rel=1e-5)
    assert smooth.check(None) == "" != LabelSmoothing(name="s", share=1.0).check(None)
    assert smooth.chance(paper_objective.DIMS) == math.log(paper_objective.DIMS.vocab)


def plain_kl(p, q) -> float:
    return sum(a * math.log(a / b) for a, b in zip(p, q, strict=True))


def test_distill_is_the_divergence_of_the_predictions_at_a_temperature():
    logits, teacher, target = torch.randn(4, 9), 2 * torch.randn(4, 9), torch.tensor([0, 3, 8, 3])
    heat = 1.7
    own, goal = ((each.double() / heat).softmax(-1).tolist() for each in (logits, teacher))
    middle = [[(a + b) / 2 for a, b in zip(*rows, strict=True)] for rows in zip(own, goal, strict=True)]
    want = {
        "forward": [plain_kl(g, o) for o, g in zip(own, goal, strict=True)],
        "reverse": [plain_kl(o, g) for o, g in zip(own, goal, strict=True)],
        "js": [(plain_kl(o, m) + plain_kl(g, m)) / 2 for o, g, m in zip(own, goal, middle, strict=True)],
    }
    for divergence, values in want.items():
        term = Distill(name="d", teacher="t", divergence=divergence, temperature=heat)
        found = term.rows(logits, target, teacher)
        assert found.tolist() == pytest.approx([heat**2 * value for value in values], rel=1e-4), divergence
        assert term.rows(logits, target, logits).abs().max() < 1e-6, "0 is the teacher's predictions"
    assert term.check(None) == "" != Distill(name="d", teacher="t", temperature=0.0).check(None)


def test_distill_stored_counts_all_other_tokens_as_one():
    logits, teacher, target = torch.randn(4, 9), 2 * torch.randn(4, 9), torch.tensor([0, 3, 8, 3])
    term, own, goal = DistillStored(name="d"), logits.double().softmax(-1), teacher.double().softmax(-1)
    for k in (1, 3, 8):
        logp, tokens = teacher.log_softmax(-1).topk(k)
        want = []
        for o, g, kept in zip(own.tolist(), goal.tolist(), tokens.tolist(), strict=True):
            o, g = ([each[t] for t in kept] + [sum(each) - sum(each[t] for t in kept)] for each in (o, g))
            want.append(plain_kl(g, o))
        assert term.rows(logits, target, tokens, logp).tolist() == pytest.approx(want, rel=1e-3, abs=1e-6), k
    whole = Distill(name="d", teacher="t").rows(logits, target, teacher)
    assert want == pytest.approx(whole.tolist(), rel=1e-4), "without one token the others are one event"
    sure = torch.zeros(4, 1)
    assert torch.isfinite(term.rows(logits, target, tokens[:, :1], sure)).all()


def test_viral_is_one_minus_the_cosine_of_each_row():
    dims, term = paper_objective.DIMS, Viral(name="viral", layer=1, width=8)
    states, features = torch.randn(5, dims.width), torch.randn(5, dims.image.width)
    ctx = ctx_of(term, (states, features))
    want = 0.0
    for state, feature in zip(states, features, strict=True):
        projected = ctx.module(state)
        want += 1 - (projected @ feature / (projected.norm() * feature.norm())).item()
    assert term.value(ctx).item() == pytest.approx(want, rel=1e-5)
    assert term.metrics(ctx)["similarity"].total.item() == pytest.approx(5 - want, rel=1e-5)
    assert term.chance(dims) == 1.0 and term.check(dims) == "" != Viral(name="v", width=0).check(dims)


def test_reconstruct_of_no_prediction_is_the_variance_of_the_noise():
    dims, term = paper_objective.DIMS, Reconstruct(name="reconstruct", width=8)
    states, features = torch.randn(4000, dims.width), 3 + 5 * torch.randn(4000, dims.image.width)
    ctx = ctx_of(term, (states, features))
    torch.nn.init.zeros_(ctx.module.out[-1].weight)
    torch.nn.init.zeros_(ctx.module.out[-1].bias)
    assert term.value(ctx).item() / 4000 == pytest.approx(term.chance(dims), rel=0.02)
    again, later = (ctx_of(term, (states, features), step=step) for step in (0, 1))
    values = [term.value(each).item() for each in (ctx_of(term, (states, features)), again, later)]
    assert values[0] == values[1] != values[2], "the noise follows from the step"
    assert term.check(dims) == "" != Reconstruct(name="r", width=0).check(dims)


@pytest.mark.parametrize("term", [Viral(name="t", layer=1, width=8), Reconstruct(name="t", width=8)])
def test_features_are_those_of_a_teacher_where_one_is_named(term):
    named = replace(term, teacher="dino")
    own, (states, features) = term.needs, named.needs
    assert isinstance(own[1], VisionAt) and (states, features) == (own[0], TeacherAt("dino", own[1].at))
    dims = replace(paper_objective.DIMS, teachers={"dino": ImageSpec(size=9, grid=(3, 3), width=11)})
    widths = [[m.out_features for m in each.modules(dims).modules() if isinstance(m, torch.nn.Linear)][-1]
              for each in (term, named)]  # fmt: skip
    assert widths == [dims.image.width, 11]
    assert dry_run(term) == dry_run(named) == []


def test_the_square_of_the_answer_is_at_the_marked_place():
    task, rng, seen = Points(name="p", share=1.0), np.random.default_rng(1), set()
    for _ in range(40):
        (view,) = task.views(SAMPLE, rng)
        first, second = view.sample.images
        assert first.path == second.path == "a.jpg" and view.sample.turns[0].images == 2
        blank = torch.zeros(3, 48, 48)
        marked = first.edit(blank)
        back = torch.rot90(second.edit(blank), -second.edit.quarters, (1, 2))
        answer = torch.tensor(COLOURS[view.sample.turns[1].text])[:, None, None]
        same = (back == answer).all(0)
        rows, columns = (same.nonzero()[:, axis].float().mean() for axis in (0, 1))
        square = (marked != 0).all(0).nonzero().float().mean(0)
        assert abs(rows - square[0]) <= 1 and abs(columns - square[1]) <= 1
        seen.add((view.sample.turns[1].text, second.edit.quarters))
        assert task.score(view, view.sample.turns[1].text) == (1.0, 0.25)
    assert len({answer for answer, _ in seen}) == 4 == len({quarters for _, quarters in seen})
    assert turned((0.2, 0.6), 1) == pytest.approx((0.4, 0.2)) and turned((0.2, 0.6), 4) == pytest.approx(
        (0.2, 0.6)
    )
    assert not Marked(0, ())(torch.ones(3, 4, 4)).eq(0).any() and Points(name="p", share=2).check(None)


@pytest.mark.parametrize("kind", [Rotation, Colour])
def test_questions_are_asked_of_a_share_and_answered_by_the_edit(kind):
    task, rng = kind(name="q", share=0.25), np.random.default_rng(0)
    made = [task.views(SAMPLE, rng) for _ in range(400)]
    assert 70 < sum(map(len, made)) < 130
    views = [view for (view,) in filter(None, made)]
    assert {view.sample.turns[1].text for view in views} == set(task.answers)
    for view in views:
        question, answer = view.sample.turns
        assert question.images == 2 and view.supervision == "train"
        assert {image.edit for image in view.sample.images} == {task.answers[answer.text]}
    assert task.score(views[0], f" {views[0].sample.turns[1].text}\n") == (1.0, 1 / len(task.answers))
    assert task.score(views[0], "no")[0] == 0.0
    assert task.views(replace(SAMPLE, images=(), turns=(Turn("user", "x"), SAMPLE.turns[1])), rng) == []
    assert kind(name="q", share=0.0).check(None).startswith("share") and task.check(None) == ""


def test_edits_turn_to_the_left_and_exchange_channels():
    pixels = torch.arange(12.0).view(3, 2, 2)
    turned = Turned(1)(pixels)
    assert turned[0].tolist() == [[1, 3], [0, 2]] and torch.equal(Turned(3)(turned), pixels)
    assert torch.equal(Exchanged((2, 0, 1))(pixels), torch.stack([pixels[2], pixels[0], pixels[1]]))
    assert isinstance(View(sample=SAMPLE), View) and len({Turned(1), Turned(1), Turned(2)}) == 2


def test_contrast_reads_image_and_text_in_views_of_their_own():
    alone, text = Apart(name="apart").views(SAMPLE, np.random.default_rng(0))
    assert alone.sample.images == SAMPLE.images and [t.text for t in alone.sample.turns] == [""]
    assert text.sample.images == () and [t.text for t in text.sample.turns] == ["what", "A cat."]
    assert not any(turn.images for turn in text.sample.turns)
    assert Apart(name="apart").views(replace(SAMPLE, images=()), np.random.default_rng(0)) == []
    term, apart = Contrast(name="contrast"), Apart(name="apart")
    assert dry_run(term, apart) == []
    ctx = fake_ctx(term, apart, samples=3)
    items = term.embed(ctx)
    assert len(items) == term.count(ctx.batch) == 3
    similar = term.metrics(ctx)["similarity"].total.item()
    assert similar == pytest.approx(torch.einsum("nd,nd->", items[:, 0], items[:, 1]).item(), rel=1e-5)


def test_contrast_is_the_cross_entropy_of_rows_and_columns():
    term = Contrast(name="contrast", temperature=0.5)
    module = term.modules(paper_objective.DIMS)
    init(module, 0)
    items, want = torch.nn.functional.normalize(torch.randn(5, 2, 6), dim=-1), 0.0
    for i in range(5):
        to_text = [(items[i, 0] @ items[j, 1]).item() / 0.5 for j in range(5)]
        to_image = [(items[j, 0] @ items[i, 1]).item() / 0.5 for j in range(5)]
        for scores in (to_text, to_image):
            want += (np.log(np.exp(scores).sum()) - scores[i]) / 2
    value = term.step_value(items, module)
    assert value.item() == pytest.approx(want, rel=1e-5)
    value.backward()
    assert module.log.shape == (1,) and module.log.grad.item() != 0
    torch.nn.init.constant_(module.log, -50.0)
    assert module().item() == pytest.approx(0.01), "a temperature of 0 would divide by it"
    assert term.check(None) == "" != Contrast(name="c", temperature=0.0).check(None)


def patches_in(box, rows, columns, fine=20):
    """Counts points of a fine grid: the share of those in the box that each patch has."""
    left, top, right, bottom = box
    found = np.zeros((rows, columns))
    for i in range(rows * fine):
        for j in range(columns * fine):
            y, x = (i + 0.5) / (rows * fine), (j + 0.5) / (columns * fine)
            found[i // fine, j // fine] += top < y < bottom and left < x < right
    return (found / found.sum()).flatten()


def test_attention_box_covers_patches_by_area():
    for box in ([0, 0, 1, 1], [0.25, 0.5, 0.5, 1], [0.1, 0.05, 0.35, 0.6], [0.55, 0.9, 0.6, 0.95]):
        assert covered(box, (4, 2)) == pytest.approx(patches_in(box, 4, 2), abs=1e-9), box
    tiny = covered([0.3, 0.3, 0.301, 0.301], (4, 4))
    assert tiny.argmax() == 5 and tiny.sum() == pytest.approx(1), "without any centre of a patch in it"
    term, dims = AttentionBox(name="a", key="where"), paper_objective.DIMS
    label = term.labels(replace(SAMPLE, meta={"where": [0.5, 0, 1, 0.5]}), dims)["box"]
    assert label.shape == (dims.image.tokens,) and label.sum() == pytest.approx(1)
    assert not term.labels(replace(SAMPLE, meta={"box": [0, 0, 1, 1]}), dims)["box"].any()
    for wrong in ([0.5, 0, 0.5, 1], [0, 0, 1], [0, 0, 1, 2], "left", 3, [0, math.nan, 1, 1], ["a", 0, 1, 1]):
        with pytest.raises(ValueError, match=r"`where` of sample s is .* as shares of the image"):
            term.labels(replace(SAMPLE, meta={"where": wrong}), dims)


def test_attention_box_is_the_divergence_of_each_token_of_the_answers():
    term = AttentionBox(name="attention_box")
    samples = [
        replace(sample, meta=meta)
        for sample, meta in (
            (paper_objective.CAPTIONS[0], {"box": [0.0, 0.0, 0.5, 1.0]}),
            (paper_objective.CHATS[1], {"box": (0.2, 0.1, 0.9, 0.4)}),
            (paper_objective.CAPTIONS[1], {}),
            (paper_objective.chat("g", "both?", "yes", images=2), {"box": [0.5, 0.5, 1.0, 1.0]}),
            (paper_objective.CHATS[2], {"box": [0, 0, 1, 1]}),
        )
    ]
    made = replace(paper_objective.views(), tasks=(), edits=(), losses=(term,), dims=paper_objective.DIMS)
    packer = replace(paper_objective.packer(terms=(term,)), text_terms=("next_token",))
    batch, _ = pack(packer, [packer.sized(made.fitting(sample, 0, Counter())) for sample in samples])
    (need,) = term.needs
    n, tokens = len(batch.gathers[need]), paper_objective.DIMS.image.tokens
    keys = batch.gathers[need].key_QK >= 0
    assert keys.sum(1).unique().tolist() == [tokens, 2 * tokens]
    attention = torch.rand(n, 2 * tokens).masked_fill(~keys, 0) / (3 * tokens)
    attention[0, 0] = 0.0  # of a key that the query can attend to
    ctx = Ctx("attention_box", batch, {need: attention.requires_grad_()}, None)
    want, inside, chance, with_box, asked = 0.0, 0.0, 0.0, 0, Counter()
    for q, row in enumerate(attention.tolist()):
        sample = samples[batch.gathers[need].view_Q[q]]
        asked[sample.key] += 1
        if "box" not in sample.meta:
            continue
        target = patches_in(sample.meta["box"], *paper_objective.DIMS.image.grid, fine=60)
        with_box += 1
        chance += (target > 0).sum() / keys[q].sum().item()
        for weight, share in zip(row, target, strict=False):  # the first image
            if share:
                want += share * math.log(share / max(weight / sum(row), 1e-12))
                inside += weight / sum(row)
    assert dict(asked) == {"a": 19, "b": 9, "e": 12 + 4, "g": 5}, "letters and ends of answers after an image"
    assert term.count(batch) == n == asked.total()
    value = term.value(ctx)
    assert value.item() == pytest.approx(want, rel=1e-4)
    metrics = term.metrics(ctx)
    assert [metrics["inside"].total.item(), metrics["with_box"].total.item()] == pytest.approx(
        [inside, with_box], rel=1e-4
    )
    assert float(metrics["inside"].chance) == pytest.approx(chance, rel=1e-5)
    value.backward()
    without = [samples[v].meta == {} for v in batch.gathers[need].view_Q]
    assert torch.isfinite(attention.grad).all() and not attention.grad[without].any()
    with pytest.raises(ValueError, match="fewer rows than patches"):
        term.value(Ctx("attention_box", batch, {need: attention[:, : tokens - 1]}, None))


def test_attention_box_has_no_problem_with_boxes_and_without(scenes, tmp_path, monkeypatch, offered):
    assert dry_run(AttentionBox(name="attention_box")) == []
    path = ROOT / "recipes" / "zoo" / "attention_box.yaml"
    root = with_its_records(path, scenes, tmp_path, monkeypatch)
    records = json.loads((root / "finetune_boxes.json").read_text())
    boxes = [record["box"] for record in records if "box" in record]
    assert len(records) / 5 < len(boxes) < len(records) and len(set(map(tuple, boxes))) == 4
    assert plugin_problems(prepare(read_recipe(path, root=root))) == []
    records[0]["box"] = [0.5, 0.5, 0.2, 1.0]
    (root / "finetune_boxes.json").write_text(json.dumps(records[:1] * 40))
    (problem,) = plugin_problems(prepare(read_recipe(path, root=root)))
    assert problem.code == "plugin/raised" and "`box` of sample" in problem.got
