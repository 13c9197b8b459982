"""Rules between keys, each with the key that it names."""

import pytest

from lmmkit.errors import UserError
from lmmkit.recipe import read_text
from tests.support.example_recipes import PRETRAINED, SCRATCH

STAGE, FIT = "stages.only", "data.scenes.image_fit"
FITS = (
    ("kind: anyres, max_tiles: 1", ".max_tiles", "conflict"),
    ("kind: anyres, grids: [[2, 1], [1, 2], [2, 1]]", ".grids.2", "conflict"),
    ("kind: anyres, grids: [[2, 0]]", ".grids.0.1", "out-of-range"),
    ("kind: anyres, grids: [[2, 65]]", ".grids.0.1", "out-of-range"),
    ("kind: anyres, grids: [[2]]", ".grids.0", "wrong-type"),
    ("kind: anyres, grids: 3", ".grids", "wrong-type"),
    ("kind: anyers", ".kind", "wrong-type"),
    ("grids: [[1, 2]]", "", "wrong-type"),
    ("kind: anyres, tiles: 3", ".tiles", "unknown-key"),
)


@pytest.mark.parametrize(
    ("override", "key", "code"),
    [
        ("model.vision.heads=5", "model.vision.heads", "conflict"),
        ("model.vision.patch=7", "model.vision.patch", "conflict"),
        ("model.vision.feature_layer=5", "model.vision.feature_layer", "out-of-range"),
        ("model.vision.feature_layer=-6", "model.vision.feature_layer", "out-of-range"),
        ("model.connector.kind=none", "model.connector.kind", "conflict"),
        ("model.connector={kind: none, reduce: order, from: x}", "model.connector.from", "conflict"),
        ("model.connector.reduce=nowhere", "model.connector.reduce", "unknown-name"),
        (f"{STAGE}.tokens=[nowhere]", f"{STAGE}.tokens.0", "unknown-name"),
        ("model.text.kv_heads=3", "model.text.kv_heads", "conflict"),
        ("model.text.head_size=15", "model.text.head_size", "conflict"),
        ("model.text.context=64", "model.text.context", "conflict"),
        ("model.text.rope_scaling={kind: yarn, factor: 2}", "model.text.rope_scaling.original", "conflict"),
        (
            "model.text.rope_scaling={kind: dynamic, factor: 2, original: 8}",
            "model.text.rope_scaling.original",
            "conflict",
        ),
        (
            "model.text.rope_scaling={kind: llama3, factor: 2, original: 8, low: 4, high: 4}",
            "model.text.rope_scaling.high",
            "conflict",
        ),
        ("model.chat={template: plain, image_fit: pad, system: Be brief.}", "model.chat.system", "conflict"),
        ("model.chat.image_fit={kind: anyres, grids: []}", "model.chat.image_fit.grids", "out-of-range"),
        *((f"{FIT}={{{fit}}}", f"{FIT}{key}", code) for fit, key, code in FITS),
        (f"{FIT}=paad", FIT, "wrong-type"),
        ("data.scenes.kind=webdataset", "data.scenes.images", "conflict"),
        ("data.scenes.kind=vqa", "data.scenes", "conflict"),
        ("data.scenes.columns={messages: x}", "data.scenes.columns", "conflict"),
        (
            "data.scenes={kind: messages, records: a.json, images: x, template: plain, image_fit: pad, "
            "columns: {messages: x, id: y, images: x}}",
            "data.scenes.columns.images",
            "conflict",
        ),
        ("data.scenes.annotations=a.json", "data.scenes.annotations", "conflict"),
        ("plugins.next_token={}", "plugins.next_token", "name"),
        ("plugins.main={}", "plugins.main", "name"),
        ("plugins.Big={}", "plugins.Big", "name"),
        ("plugins.order.use=3", "plugins.order.use", "wrong-type"),
        ("plugins.order.allow_unreachable=yes", "plugins.order.allow_unreachable", "wrong-type"),
        (f"{STAGE}.data={{nowhere: 1}}", f"{STAGE}.data.nowhere", "unknown-name"),
        (f"{STAGE}.data={{scenes: 0}}", f"{STAGE}.data.scenes", "out-of-range"),
        (f"{STAGE}.data={{}}", f"{STAGE}.data", "out-of-range"),
        (f"{STAGE}.length.epochs=1", f"{STAGE}.length", "conflict"),
        (f"{STAGE}.length={{}}", f"{STAGE}.length", "conflict"),
        (f"{STAGE}.train={{}}", f"{STAGE}.train", "conflict"),
        (f"{STAGE}.train.head={{}}", f"{STAGE}.train.head", "unknown-key"),
        (f"{STAGE}.train.vision.lora={{r: 1}}", f"{STAGE}.train.vision.lora", "unknown-key"),
        (f"{STAGE}.optim.warmup=1.5", f"{STAGE}.optim.warmup", "out-of-range"),
        (f"{STAGE}.optim.warmup=201", f"{STAGE}.optim.warmup", "conflict"),
        (f"{STAGE}.optim.clip=0", f"{STAGE}.optim.clip", "out-of-range"),
        (f"{STAGE}.optim.betas=[0.9, 1]", f"{STAGE}.optim.betas.1", "out-of-range"),
        (f"{STAGE}.losses.ordre=1", f"{STAGE}.losses.ordre", "unknown-name"),
        (f"{STAGE}.losses.order={{weight: 1, by: [order]}}", f"{STAGE}.losses.order.by", "conflict"),
        (
            f"{STAGE}.losses.next_token={{weight: 1, by: [nowhere]}}",
            f"{STAGE}.losses.next_token.by.0",
            "unknown-name",
        ),
        (
            f"{STAGE}.losses.next_token={{weight: 1, by: [order, order]}}",
            f"{STAGE}.losses.next_token.by.1",
            "conflict",
        ),
        (
            f"{STAGE}.losses.next_token={{weight: 1, by: order}}",
            f"{STAGE}.losses.next_token.by",
            "wrong-type",
        ),
        (
            f"{STAGE}.losses.next_token={{weight: 1, per: weight}}",
            f"{STAGE}.losses.next_token.per",
            "conflict",
        ),
        (f"{STAGE}.losses.order={{weight: 1, per: count}}", f"{STAGE}.losses.order.per", "conflict"),
        (f"{STAGE}.losses.order=-1", f"{STAGE}.losses.order", "out-of-range"),
        (f"{STAGE}.losses.order=true", f"{STAGE}.losses.order", "wrong-type"),
        (f"{STAGE}.losses.order={{from: 1}}", f"{STAGE}.losses.order", "conflict"),
        (f"{STAGE}.losses.order={{watch: true}}", f"{STAGE}.losses.order", "conflict"),
        (f"{STAGE}.losses.order.weight=1", f"{STAGE}.losses.order", "conflict"),
        (f"{STAGE}.losses={{next_token: 0}}", f"{STAGE}.losses", "conflict"),
        (f"{STAGE}.validate.data=scene", f"{STAGE}.validate.data", "unknown-name"),
        (f"{STAGE}.validate.tasks=[word]", f"{STAGE}.validate.tasks.0", "unknown-name"),
        (f"{STAGE}.validate.best=words", f"{STAGE}.validate.best", "unknown-name"),
        (f"{STAGE}.validate.best=pope/f1", f"{STAGE}.validate.best", "unknown-name"),
        ("evaluate.tasks.words.file=x", "evaluate.tasks.words.file", "unknown-key"),
        ("evaluate.tasks.pope={match: none}", "evaluate.tasks.pope.match", "wrong-type"),
        ("evaluate.tasks.words.data=x", "evaluate.tasks.words.data", "unknown-name"),
        ("evaluate.controls=[blanc]", "evaluate.controls.0", "wrong-type"),
        ("evaluate.controls=[blank, {emty: a.png}]", "evaluate.controls.1.emty", "unknown-key"),
        ("evaluate.controls=[blank, {}]", "evaluate.controls.1.empty", "missing-key"),
        ("evaluate.controls=[3]", "evaluate.controls.0", "wrong-type"),
        ("evaluate.controls=[{empty: 3}]", "evaluate.controls.0.empty", "wrong-type"),
        ("evaluate.controls=[{empty: a.png}, {empty: b.png}]", "evaluate.controls", "conflict"),
        ("output.keep=1", "output.keep", "out-of-range"),
        ("data={}", "data", "out-of-range"),
    ],
)
def test_a_rule_names_its_key(override, key, code):
    with pytest.raises(UserError) as raised:
        read_text(SCRATCH, overrides=[override])
    found = [(p.where, p.code) for p in raised.value.problems]
    assert any(
        c == f"recipe/{code}" and (w.endswith((f"({key})", f" {key}")) or w == f"--set {override}")
        for w, c in found
    ), found


@pytest.mark.parametrize("keys", ["max_patches: 4", "grids: [[1, 2]]", "multiple: 2, max_patches: 0", "x: 1"])
@pytest.mark.parametrize(
    ("kind", "hint"),
    [("nativ", "`native`?"), ("anyers", "`anyres`?"), ("q", "Known: anyres, native."), ("3", "")],
)
def test_a_kind_of_fit_that_there_is_not_is_answered_with_all_kinds(keys, kind, hint):
    with pytest.raises(UserError) as raised:
        read_text(SCRATCH, overrides=[f"data.scenes.image_fit={{kind: {kind}, {keys}}}"])
    found = {p.where.split(".")[-1].rstrip(")"): p for p in raised.value.problems}
    assert found["kind"].expected == "anyres or native" and hint in found["kind"].hint
    wrong = {"x: 1": {"x"}, "multiple: 2, max_patches: 0": {"max_patches"}}.get(keys, set())
    assert found.keys() == {"kind"} | wrong


def test_everything_is_reported_at_once():
    text = SCRATCH.replace("width: 64", "widht: 64", 1).replace("seed: 7", "seed: '7'")
    text = text.replace("order: {from", "ordre: {from").replace("clip: 1.0", "clip: nope")
    with pytest.raises(UserError) as raised:
        read_text(
            text,
            overrides=["speed.tokenz=3", "stages.onyl.seed=1", "model.text.kv_heads=3", "speed"],
        )
    reported = {(p.code.removeprefix("recipe/"), p.where.split()[-1]) for p in raised.value.problems}
    assert reported == {
        ("wrong-type", "seed"),
        ("missing-key", "model.vision.width"),
        ("unknown-key", "model.vision.widht"),
        ("wrong-type", "stages.only.optim.clip"),
        ("unknown-name", "stages.only.losses.ordre"),
        ("unknown-key", "speed.tokenz=3"),
        ("set", "stages.onyl.seed=1"),
        ("conflict", "model.text.kv_heads=3"),
        ("set", "speed"),
    }


def test_heads_that_do_not_divide_need_a_head_size():
    raw = {"overrides": ["model.text={width: 60, depth: 1, heads: 8, mlp: 8, context: 128}"]}
    with pytest.raises(UserError, match=r"model\.text\.heads"):
        read_text(SCRATCH, **raw)
    raw = {"overrides": [raw["overrides"][0].replace("}", ", head_size: 8}")]}
    assert read_text(SCRATCH, **raw).model.text.head_size == 8


def test_the_last_words_on_warmup_and_on_none():
    recipe = read_text(PRETRAINED, overrides=["stages.pretrain.optim.warmup=1"])
    assert recipe.stages["pretrain"].optim.warmup == 1.0
    assert recipe.stages["pretrain"].optim.clip == "none"


@pytest.mark.parametrize("part", ["vision", "connector"])
def test_an_encoder_and_its_connector_come_together(part):
    text = "\n".join(line for line in PRETRAINED.splitlines() if not line.startswith(f"  {part}:"))
    with pytest.raises(UserError, match=f"without `{part}`"):
        read_text(text)


@pytest.mark.parametrize(
    ("section", "fits"),
    [
        ("{}", {1: (1, 1), 2: (1, 2), 3: (1, 3)}),
        ("{shard: 2}", {1: (1, 1), 2: (1, 2), 3: None, 4: (2, 2)}),
        ("{shard: 1}", {1: (1, 1), 3: (3, 1)}),
        ("{replicate: 2}", {1: (1, 1), 2: (2, 1), 3: None, 4: (2, 2), 6: (2, 3)}),
        ("{shard: 2, replicate: 2}", {1: (1, 1), 2: None, 4: (2, 2), 8: None}),
        ("{shard: 8}", {1: (1, 1), 2: None, 8: (1, 8)}),
    ],
)
def test_which_numbers_of_processes_fit(section, fits):
    text = SCRATCH.replace("parallel: {shard: 1, replicate: 2, exchange: step}", f"parallel: {section}")
    parallel = read_text(text).parallel
    assert {world: parallel.mesh(world) for world in fits} == fits
