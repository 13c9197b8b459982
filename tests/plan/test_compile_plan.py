"""Plans: what is on, what is off with the reason, and every combination that is refused."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import pytest
import torch

from lmmkit.api import LogProb, Loss, Select
from lmmkit.errors import UserError
from lmmkit.plan.compile_plan import _readers
from lmmkit.plan.explain import plan_text, trace_samples
from lmmkit.plan.instances import type_text
from lmmkit.plan.prepare import prepare, prepare_bare
from lmmkit.recipe import Weight
from tests.conftest import DIRECT, PLAIN
from tests.support import contrast_plugin
from tests.training.test_resume import of_micro_batches


def problems(tiny, *overrides: str, **kwargs) -> dict[str, str]:
    """Returns the place of each problem, by code."""
    with pytest.raises(UserError) as error:
        prepare(tiny(*overrides), **kwargs)
    return {p.code: p.where for p in error.value.problems}


def test_direct_llava_s_plan(tiny):
    plans = prepare(tiny()).plans
    pretrain, finetune = plans["pretrain"], plans["finetune"]
    assert [t.name for t in pretrain.terms] == ["guided_loss", "image_order", "text_order"]
    assert pretrain.text_terms == ("next_token", "text_order")
    assert [(s.name, views) for s, views in pretrain.strategies] == [
        ("directed_token", frozenset({"image_order"}))
    ]
    assert finetune.off == {"text_order": "no weight in this stage"}
    assert finetune.inference_plugins == () and finetune.active == {
        "directed_token",
        "image_order",
        "guided_loss",
    }
    assert pretrain.digest != finetune.digest == prepare(tiny()).plans["finetune"].digest


def test_weight_zero_takes_the_token_that_only_it_reads_with_it(tiny):
    plan = prepare(tiny("stages.pretrain.losses.image_order=0")).plans["pretrain"]
    assert plan.strategies == () and plan.tasks[0].name != "image_order"
    assert plan.off == {"image_order": "weight 0", "directed_token": "no active term reads its tokens"}


def test_a_weight_scheduled_from_zero_is_built(tiny):
    plan = prepare(tiny("stages.pretrain.losses.image_order={from: 0, to: 1, over: 0.5}")).plans["pretrain"]
    assert "image_order" in plan.active
    assert plan.weights["image_order"].at(0) == 0 and plan.weights["image_order"].at(0.25) == 0.5


def test_a_token_before_the_response_is_in_every_view_and_in_inference(tiny):
    plan = prepare(
        tiny("plugins.directed_token.place=before_response", "plugins.image_order.allow_unreachable=false")
    ).plans["finetune"]
    assert plan.strategies[0][1] is None and plan.inference_plugins == ("directed_token",)


def test_a_token_that_cannot_attend_to_the_image_is_refused_unless_allowed(tiny):
    found = problems(tiny, "plugins.directed_token.place=start")
    assert set(found) == {"plan/unreachable"}
    allowed = tiny("plugins.directed_token.place=start", "plugins.image_order.allow_unreachable=true")
    assert prepare(allowed).plans["pretrain"].inference_plugins == ("directed_token",)


def test_a_token_that_no_strategy_provides(tiny):
    text = DIRECT.replace("  directed_token: {place: end}\n", "")
    with pytest.raises(UserError, match="`image_order` reads token `drt`, which no plugin provides"):
        prepare(tiny(text=text))


def test_a_token_that_no_term_reads(tiny):
    assert set(problems(tiny, "plugins.image_order.read=visual")) == {"plan/unread-token"}


def test_visual_reading_needs_no_token(tiny):
    text = DIRECT.replace("  directed_token: {place: end}\n", "").replace(
        "permutations: 5", "permutations: 5, read: visual"
    )
    assert prepare(tiny(text=text)).plans["pretrain"].strategies == ()


def test_an_unknown_plugin_is_reported_with_its_line(tiny):
    text = DIRECT.replace("text_order:     {}", "text_ordr:      {}").replace("{grid: 3", "{gird: 3")
    text = text.replace("text_order: 1.0", "text_ordr: 1.0")
    with pytest.raises(UserError) as error:
        prepare(tiny(text=text))
    (unknown,) = error.value.problems
    assert (
        unknown.code == "plugin/unknown"
        and "tiny.yaml:19" in unknown.where
        and "`text_order`" in unknown.hint
    )


def test_all_wrong_settings_are_reported_together(tiny):
    found = problems(
        tiny, "plugins.image_order={gird: 3, permutations: many}", "plugins.directed_token.place=ennd",
        "plugins.guided_loss.layers=[0, 9]", "data.captions.records=absent.json",
    )  # fmt: skip
    assert {"plugin/unknown-key", "plugin/missing-key", "plugin/bad-value"} <= set(found)
    assert any(code.startswith("records/") for code in found), "data problems come in the same report"


def test_settings_that_do_not_fit_the_model(tiny):
    assert set(problems(tiny, "plugins.image_order.grid=2")) == {"plan/setting"}
    for layers in ("[0, 2]", "[]", "[0, 0]"):
        assert set(problems(tiny, f"plugins.guided_loss.layers={layers}")) == {"plan/layers"}


def test_a_strategy_has_no_weight_and_a_term_must_have_one(tiny):
    assert "plan/not-a-term" in problems(tiny, "stages.pretrain.losses.directed_token=1.0")
    losses = [
        f"stages.{stage}.losses={{next_token: 1.0, image_order: 1.0, text_order: 1.0}}"
        for stage in ("pretrain", "finetune")
    ]
    assert set(problems(tiny, *losses)) == {"plan/no-weight"}


def test_a_bad_setting_is_reported_once_with_its_choices(tiny):
    with pytest.raises(UserError) as error:
        prepare(tiny("plugins.directed_token.place=ennd", "plugins.guided_loss.layers=[0, x]"))
    place, layers = error.value.problems
    assert (place.got, place.expected) == ("`ennd`", "one of end, start, before_response")
    assert (layers.got, layers.expected) == ("`[0, x]`", "all or a list of int")


@pytest.mark.parametrize(
    ("hint", "words"),
    [
        (int, "int"),
        (Literal["a"], "a"),
        (Literal["a", "b"], "one of a, b"),
        (int | None, "int or nothing"),
        (tuple[float, int], "a list of 2: float, int"),
        (list[Literal["a", "b"]], "a list of one of a, b"),
    ],
)
def test_types_as_text(hint, words):
    assert type_text(hint) == words


def test_without_terms_only_the_plugins_of_inference_are_opened(tiny):
    text = DIRECT.replace("text_order:     {}", "text_ordr:      {}").replace(
        "text_order: 1.0", "text_ordr: 1.0"
    )
    prepared = prepare_bare(tiny(text=text), inference_plugins=["directed_token"], data=["questions"])
    assert list(prepared.instances.components) == ["directed_token"] and list(prepared.sources) == [
        "questions"
    ]
    plan = prepared.plans["finetune"]
    assert plan.terms == () and plan.inference_plugins == ("directed_token",)


def test_components_survive_in_two_instances(tiny):
    text = DIRECT.replace(
        "text_order:     {}", "text_order:     {}\n  fine_order: {use: image_order, grid: 3, permutations: 3}"
    )
    text = text.replace("image_order: 1.0,", "image_order: 1.0, fine_order: 1.0,")
    prepared = prepare(tiny(text=text))
    batch = prepared.pipeline("pretrain").step(0)[0]
    assert len(batch.views_of("image_order")) == len(batch.views_of("fine_order")) == 4
    assert batch.labels["fine_order/permutation"].max() < 3
    assert batch.count["image_order"] == batch.count["fine_order"] == 4


def test_a_local_file_runs_only_when_trusted(tiny, scenes, tmp_path):
    file = tmp_path / "mine.py"
    file.write_text(
        "from dataclasses import dataclass\n"
        "from lmmkit.api import AttnMass, Loss, Select, hookimpl\n"
        "@dataclass(frozen=True, kw_only=True)\n"
        "class Mine(Loss):\n"
        "    power: float = 2.0\n"
        "    needs = (AttnMass(q=Select(supervised=True)),)\n"
        "    def value(self, ctx):\n"
        "        return ctx[self.needs[0]].pow(self.power).sum()\n"
        "@hookimpl\n"
        "def lmmkit_components():\n"
        "    return {'mine': Mine}\n"
    )
    text = PLAIN.replace("stages:", f"plugins:\n  mine: {{use: {file}, power: 3.0}}\nstages:", 1)
    text = text.replace("{next_token: 1.0}", "{next_token: 1.0, mine: 0.1}")
    with pytest.raises(UserError, match="plugin/untrusted-file"):
        prepare(tiny(text=text))
    prepared = prepare(tiny(text=text), trust_files=True)
    assert prepared.instances.components["mine"].power == 3.0
    assert prepared.instances.origin("mine").startswith(str(file))


@pytest.mark.parametrize(
    ("body", "code"),
    [
        ("raise RuntimeError('no')", "plugin/load-error"),
        ("def lmmkit_components():\n    return {}", "plugin/no-hookimpl"),
        (
            "from lmmkit.api import hookimpl\n@hookimpl\ndef lmmkit_component():\n    return {}",
            "plugin/bad-hook",
        ),
        (
            "from lmmkit.api import hookimpl\n@hookimpl\ndef lmmkit_components():\n    return {'mine': int}",
            "plugin/not-a-component",
        ),
        ("x = 1", "plugin/no-component"),
        (
            "from lmmkit.api import Loss, hookimpl\nclass Mine(Loss):\n    power: float = 1.0\n"
            "@hookimpl\ndef lmmkit_components():\n    return {'mine': Mine}",
            "plugin/not-a-component",
        ),
    ],
)
def test_a_broken_plugin_is_named(tiny, tmp_path, body, code):
    (tmp_path / "mine.py").write_text(body)
    text = PLAIN.replace("stages:", f"plugins:\n  mine: {{use: {tmp_path / 'mine.py'}}}\nstages:", 1)
    with pytest.raises(UserError) as error:
        prepare(tiny(text=text), trust_files=True)
    assert [p.code for p in error.value.problems] == [code]


@pytest.mark.parametrize("insert", ["'middle', 'mine'", "'end', 'other'", "'end', 'mine', 0"])
def test_an_insert_that_is_not_possible_is_a_problem(tiny, tmp_path, insert):
    (tmp_path / "mine.py").write_text(
        "from dataclasses import dataclass\n"
        "from lmmkit.api import HiddenAt, Insert, LearnedTokens, Loss, Select, TokenStrategy, hookimpl\n"
        "@dataclass(frozen=True, kw_only=True)\n"
        "class Mine(TokenStrategy):\n"
        "    provides = ('mine',)\n"
        "    def modules(self, dims): return LearnedTokens(1, dims.width)\n"
        f"    def edit(self, view): return [Insert({insert})]\n"
        "@dataclass(frozen=True, kw_only=True)\n"
        "class Reader(Loss):\n"
        "    needs = (HiddenAt(Select(token_name='mine')),)\n"
        "    def value(self, ctx): return ctx[self.needs[0]].square().sum()\n"
        "@hookimpl\n"
        "def lmmkit_components(): return {'mine': Mine, 'reader': Reader}\n"
    )
    file = tmp_path / "mine.py"
    section = f"plugins:\n  mine: {{use: {file}}}\n  reader: {{use: {file}:reader}}\nstages:"
    text = PLAIN.replace("stages:", section, 1).replace("{next_token: 1.0}", "{next_token: 1.0, reader: 0.1}")
    with pytest.raises(UserError) as error:
        prepare(tiny(text=text), trust_files=True)
    assert [p.code for p in error.value.problems] == ["plugin/insert"]
    assert "mine" in error.value.problems[0].where


@pytest.mark.parametrize("need", ["HiddenAt", "HiddenMean"])
@pytest.mark.parametrize("layer", ["2", "-1", "'last'"])
def test_a_state_after_more_blocks_than_there_are_is_a_problem(tiny, tmp_path, need, layer):
    (tmp_path / "mine.py").write_text(
        "from dataclasses import dataclass\n"
        "from lmmkit.api import HiddenAt, HiddenMean, Loss, Select, hookimpl\n"
        "@dataclass(frozen=True, kw_only=True)\n"
        "class Mine(Loss):\n"
        f"    needs = ({need}(Select(kind='image'), layer={layer}),)\n"
        "    def value(self, ctx): return ctx[self.needs[0]].square().sum()\n"
        "@hookimpl\n"
        "def lmmkit_components(): return {'mine': Mine}\n"
    )
    section = f"plugins:\n  mine: {{use: {tmp_path / 'mine.py'}}}\nstages:"
    text = PLAIN.replace("stages:", section, 1).replace("{next_token: 1.0}", "{next_token: 1.0, mine: 0.1}")
    with pytest.raises(UserError) as error:
        prepare(tiny(text=text), trust_files=True)
    problem = error.value.problems[0]
    assert {p.code for p in error.value.problems} == {"plan/layers"} and "mine" in problem.where
    assert (
        problem.got == f"layer {layer}" and problem.expected == "`final`, or a number of blocks from 0 to 1"
    )


VISION_READER = """
from dataclasses import dataclass
from lmmkit.api import Loss, Select, VisionAt, hookimpl
@dataclass(frozen=True, kw_only=True)
class Mine(Loss):
    needs = (VisionAt(NEED),)
    def value(self, ctx): return ctx[self.needs[0]].square().sum()
@hookimpl
def lmmkit_components(): return {"mine": Mine}
"""


@pytest.mark.parametrize(
    ("need", "train", "code"),
    [
        ("Select(kind='image')", "{text: {}}", None), ("Select(kind='image'), detach=False", "{vision: {}}", None),
        ("Select(kind='image'), 'projected', detach=False", "{connector: {}}", None),
        ("Select(kind='image'), 'projected', detach=False", "{vision: {}}", None),
        ("Select(kind='text')", "{text: {}}", "plan/image-rows"), ("Select()", "{text: {}}", "plan/image-rows"),
        ("Select(kind='image', shift=-1)", "{text: {}}", "plan/image-rows"), ("Select(kind='image'), 'pixels'", "{text: {}}", "plan/image-rows"),
        ("Select(kind='image'), detach=False", "{connector: {}}", "plan/frozen"),
        ("Select(kind='image'), 'projected', detach=False", "{text: {}}", "plan/frozen"),
    ],
)  # fmt: skip
def test_vision_features_are_of_image_rows_and_give_a_gradient_to_what_learns(
    tiny, tmp_path, need, train, code
):
    (tmp_path / "mine.py").write_text(VISION_READER.replace("NEED", need))
    section = f"plugins:\n  mine: {{use: {tmp_path / 'mine.py'}}}\nstages:"
    text = PLAIN.replace("stages:", section, 1).replace("{next_token: 1.0}", "{next_token: 1.0, mine: 0.1}")
    recipe = tiny(f"stages.pretrain.train={train}", f"stages.finetune.train={train}", text=text)
    if code is None:
        assert prepare(recipe, trust_files=True).plans["pretrain"].needs
        return
    with pytest.raises(UserError) as error:
        prepare(recipe, trust_files=True)
    assert {p.code for p in error.value.problems} == {code} and "mine" in error.value.problems[0].where


def test_vision_features_of_a_model_without_an_encoder_are_a_problem(tiny, tmp_path):
    (tmp_path / "mine.py").write_text(VISION_READER.replace("NEED", "Select(kind='image')"))
    section = f"plugins:\n  mine: {{use: {tmp_path / 'mine.py'}}}\nstages:"
    text = PLAIN.replace("stages:", section, 1).replace("{next_token: 1.0}", "{next_token: 1.0, mine: 0.1}")
    lines = [line for line in text.splitlines() if not line.startswith(("  vision:", "  connector:"))]
    train = [f"stages.{stage}.train={{text: {{}}}}" for stage in ("pretrain", "finetune")]
    with pytest.raises(UserError) as error:
        prepare(tiny(*train, text="\n".join(lines)), trust_files=True)
    found = [p for p in error.value.problems if p.code == "plan/image-rows"]
    assert found and found[0].got == "a model without an encoder"


def test_steps_and_epochs(tiny):
    recipe = tiny("stages.pretrain.length={epochs: 2}", "stages.pretrain.batch.samples=7")
    assert prepare(recipe).steps("pretrain") == 35  # ceil(240 / 7)
    dropped = tiny("stages.pretrain.length={epochs: 2}", "stages.pretrain.batch={samples: 7, tail: drop}")
    assert prepare(dropped).steps("pretrain") == 34


def test_the_length_policies(tiny):
    short = "model.text.context=40"
    with pytest.raises(UserError, match="data/too-long"):
        prepare(tiny(short)).pipeline("finetune").step(0)
    cut = prepare(tiny(short, "stages.finetune.batch.too_long=truncate")).pipeline("finetune").step(0)
    gone = prepare(tiny(short, "stages.finetune.batch.too_long=drop")).pipeline("finetune").step(0)
    assert cut[0].dropped["truncated"] and gone[0].dropped["too_long"]
    assert sum(b.count["next_token"] for b in gone) == 0, (
        "a step whose samples are all dropped is empty, not an error"
    )


def test_a_folder_that_several_sources_lack_is_reported_once(tiny):
    changes = [f"data.{name}.images=nowhere" for name in ("captions", "questions")]
    with pytest.raises(UserError) as error:
        prepare(tiny(*changes))
    assert [p.code for p in error.value.problems] == ["records/no-image-folder"]


def test_a_term_over_the_step_needs_two_samples_and_tells_of_its_passes(tiny):
    plugin = f"plugins:\n  contrast: {{use: {Path(contrast_plugin.__file__)}}}\nstages:"
    text = PLAIN.replace("stages:", plugin, 1).replace(
        "{next_token: 1.0}", "{next_token: 1.0, contrast: 0.1}"
    )
    text_of_plan = plan_text(prepare(tiny(text=text), trust_files=True))
    assert "term contrast  weight 0.1  over the step, in two passes" in text_of_plan
    with pytest.raises(UserError) as error:
        prepare(tiny("stages.finetune.batch.samples=1", text=text), trust_files=True)
    assert {p.code for p in error.value.problems} == {
        "plan/step-term"
    } and "`finetune" not in error.value.problems[0].got
    assert "stages.finetune.batch.samples" in error.value.problems[0].hint


def test_a_term_of_micro_batches_is_named_with_what_becomes_mathematics(tiny):
    text = plan_text(prepare(tiny(text=of_micro_batches()), trust_files=True))
    first, second = text.split("\n\n")
    assert "term apart  weight 0.1  the mean over micro-batches" in second and "mathematics" not in first
    keys = "speed.tokens, speed.share_prefix, parallel, the number of ranks"
    assert f"  mathematics, because of apart: {keys}\n" in second
    off = plan_text(prepare(tiny(text=of_micro_batches("{weight: 0, watch: true}")), trust_files=True))
    assert "mathematics" not in off


@pytest.mark.parametrize("name", ["half", "type", "keys", "training"])
def test_a_name_that_torch_needs_is_refused(tiny, name):
    """Keeps the module of a plugin under its name, beside the methods of `nn.ModuleDict`."""
    text = PLAIN.replace("stages:", f"plugins:\n  {name}: {{use: guided_loss}}\nstages:", 1)
    with pytest.raises(UserError) as error:
        prepare(tiny(text=text.replace("{next_token: 1.0}", f"{{next_token: 1.0, {name}: 1.0}}")))
    assert [(p.code, p.got) for p in error.value.problems] == [("recipe/name", f"the instance name `{name}`")]


@pytest.mark.parametrize(
    ("kind", "additive"),
    [("StepTerm", False), ("RowLoss", False), ("AuxTask", False), ("Loss", "0"), ("Loss", None)],
)
def test_additive_where_it_has_no_meaning_is_refused(tiny, tmp_path, kind, additive):
    path = tmp_path / "terms.py"
    path.write_text(
        f"from dataclasses import dataclass\nfrom lmmkit.api import {kind}, HiddenAt, Select, hookimpl\n"
        f"@dataclass(frozen=True, kw_only=True)\nclass Term({kind}):\n    additive = {additive!r}\n"
        + ("    text_loss = True\n" if kind == "AuxTask" else "")
        + ("    needs = (HiddenAt(Select()),)\n" if kind in ("Loss", "StepTerm") else "")
        + "@hookimpl\ndef lmmkit_components():\n    return {'term': Term}\n"
    )
    text = PLAIN.replace("stages:", f"plugins:\n  term: {{use: {path}}}\nstages:", 1)
    with pytest.raises(UserError) as error:
        prepare(
            tiny(text=text.replace("{next_token: 1.0}", "{next_token: 1.0, term: 1.0}")), trust_files=True
        )
    assert [(p.code, p.got) for p in error.value.problems] == [
        ("plugin/additive", f"additive = {additive!r}")
    ]


VIEWS = """
from dataclasses import dataclass, replace
from typing import ClassVar
from lmmkit.api import AuxTask, ExtraView, HiddenMean, Loss, Select, View, hookimpl

@dataclass(frozen=True, kw_only=True)
class Blind(ExtraView):
    def views(self, sample, rng):
        turns = tuple(replace(turn, images=0, places=()) for turn in sample.turns)
        return [View(sample=replace(sample, images=(), turns=turns))]

@dataclass(frozen=True, kw_only=True)
class Reader(Loss):
    needs = (HiddenMean(Select(view="blind")),)
    def value(self, ctx):
        return ctx[self.needs[0]].float().square().sum()

@dataclass(frozen=True, kw_only=True)
class Negative(AuxTask):
    others: ClassVar = KIND
    @property
    def needs(self):
        return (HiddenMean(Select(view=self.name)),)
    def views(self, sample, rng, others=None):
        return [View(sample=replace(sample, images=other.images)) for other in others(1)] if sample.images else []
    def value(self, ctx):
        return ctx[self.needs[0]].float().square().sum()

@hookimpl
def lmmkit_components():
    return {"blind": Blind, "reader": Reader, "negative": Negative}
"""


@pytest.fixture
def with_views(tiny, tmp_path):
    """with_views(names, losses, ...) -> the plan of a recipe with these plugins of a file."""

    def make(names: str, losses: str, *overrides: str, kind: str = "'source'", data: str = ""):
        file = tmp_path / "views.py"
        file.write_text(VIEWS.replace("KIND", kind))
        uses = "".join(f"  {name}: {{use: {file}}}\n" for name in names.split())
        text = PLAIN.replace("stages:", f"plugins:\n{uses}stages:", 1)
        text = text.replace("{next_token: 1.0}", f"{{next_token: 1.0, {losses}}}")
        return prepare(tiny(*overrides, text=text), trust_files=True)

    return make


def test_extra_views_are_made_in_a_stage_in_which_an_active_term_reads_them(with_views):
    prepared = with_views("blind reader", "reader: 0.1", "stages.finetune.losses.reader=0")
    on, off = prepared.plans["pretrain"], prepared.plans["finetune"]
    assert [view.name for view in on.extra_views] == ["blind"] and on.active == {"blind", "reader"}
    assert off.extra_views == () and off.off == {
        "blind": "no active term reads its views",
        "reader": "weight 0",
    }
    batch = prepared.pipeline("pretrain").step(0)[0]
    assert len(batch.views_of("blind")) == batch.count["reader"] == len(batch.views_of("main")) == 4
    assert batch.first_image_V[batch.views_of("blind")[0]] == -1
    assert not prepared.pipeline("finetune").step(0)[0].views_of("blind")
    plain = with_views("blind reader", "reader: 0").plans["finetune"]
    assert plain.digest == off.digest and "view blind" in plan_text(prepared)


def test_extra_views_have_no_weight_and_need_a_reader(with_views):
    assert codes(with_views, "blind", "blind: 1.0") == {"plan/not-a-term"}
    assert codes(with_views, "blind negative", "negative: 1.0") == {"plan/unread-view"}


def test_views_from_other_samples(with_views):
    prepared = with_views("negative", "negative: 0.1")
    assert "from other samples of its source too" in plan_text(prepared)
    batch = prepared.pipeline("finetune").step(0)[0]
    for main, other in zip(batch.views_of("main"), batch.views_of("negative"), strict=True):
        assert batch.views[main][1] == batch.views[other][1]
        assert batch.first_image_V[main] != batch.first_image_V[other]
    assert any("view negative" in line for line in trace_samples(prepared, "finetune", 2))


def test_other_samples_of_an_unknown_kind_or_of_a_source_of_one_record_are_refused(
    with_views, scenes, tmp_path
):
    assert codes(with_views, "negative", "negative: 1.0", kind="'batch'") == {"plugin/others"}
    one = tmp_path / "one.json"
    one.write_text(json.dumps(json.loads((scenes / "finetune.json").read_text())[:1]))
    prepared = with_views("negative", "negative: 1.0", f"data.questions.records={one}")
    with pytest.raises(UserError, match="plan/others") as error:
        prepared.pipeline("finetune")
    assert "`questions`, a source of one record, and views of negative" in error.value.problems[0].got
    unasked = with_views("negative", "negative: 1.0", f"data.questions.records={one}", kind="'none'")
    assert unasked.pipeline("finetune")


def test_other_samples_of_the_step(with_views):
    prepared = with_views("negative", "negative: 0.1", kind="'step'")
    assert "view negative  from other samples of its step too" in plan_text(prepared)
    pipeline = prepared.pipeline("finetune")
    places = (pipeline.order.at(k) for k in range(pipeline.samples))
    keys = {pipeline.sources[source][record].key for source, _, record in places}
    shown = {image.path for source, _, record in map(pipeline.order.at, range(pipeline.samples))
             for image in pipeline.sources[source][record].images}  # fmt: skip
    for batch in pipeline.step(0):
        assert {key for _, key in batch.views} <= keys and batch.views_of("negative")
    for k in range(pipeline.samples):
        source, epoch, record = pipeline.order.at(k)
        sample = pipeline.sources[source][record]
        views = pipeline.views.of(sample, epoch, pipeline.other_samples(source, 0))
        assert all(image.path in shown for view in views for image in view.sample.images)
    assert any("view negative" in line for line in trace_samples(prepared, "finetune", 6))


@pytest.mark.parametrize(
    ("changes", "got"),
    [
        (["stages.finetune.batch.samples=1"], "a step of one sample"),
        (["stages.finetune.batch={samples: 7, tail: keep}"], "the last step of one"),
    ],
)  # fmt: skip
def test_a_step_of_one_sample_has_no_other_samples(with_views, changes, got):
    """Has 120 records: steps of 7 leave one."""
    prepared = with_views("negative", "negative: 1.0", *changes, kind="'step'")
    stage = prepared.recipe.stages["finetune"]
    if "last" in got:
        stage = replace(stage, length=replace(stage.length, steps=None, epochs=1))
        prepared = replace(
            prepared, recipe=replace(prepared.recipe, stages={**prepared.recipe.stages, "finetune": stage})
        )
    with pytest.raises(UserError, match="plan/others") as error:
        prepared.pipeline("finetune")
    assert got in error.value.problems[0].got and "batch.tail: drop" in error.value.problems[0].hint
    assert with_views("negative", "negative: 1.0", *changes, kind="'source'").pipeline("finetune")


def codes(make, *args, **settings) -> set[str]:
    with pytest.raises(UserError) as error:
        make(*args, **settings)
    return {p.code for p in error.value.problems}


@pytest.mark.parametrize(
    ("need", "codes"),
    [
        ("AttnTo(q=ANSWER, k=Select(kind='text'), layers=(1, 0), heads=(1,))", set()),
        ("AttnTo(q=ANSWER, layers=(0, 0))", {"plan/layers"}),
        ("AttnTo(q=ANSWER, heads=(99,))", {"plan/layers"}),
        ("AttnTo(q=ANSWER, heads=())", {"plan/layers"}),
        ("AttnTo(q=ANSWER, k=Select(role='user'))", {"plan/attn-keys"}),
        ("AttnTo(q=ANSWER, k=Select(token_name='absent'))", {"plan/unprovided-token"}),
        ("AttnMass(q=ANSWER, k=Select(token_name='absent'))", {"plan/unprovided-token"}),
        ("AttnTo(q=Select(role='user'), k=Select(kind='text', role='response'))", {"plan/unreachable"}),
        ("AttnMass(q=ANSWER), AttnMass(q=ANSWER, k=Select(kind='text'))", set()),
        ("AttnMass(q=Select(supervised=True, turn=-1))", set()),
    ],
)  # fmt: skip
def test_attention_that_cannot_be_read_is_refused(tiny, tmp_path, need, codes):
    (tmp_path / "mine.py").write_text(
        "from dataclasses import dataclass\n"
        "from lmmkit.api import AttnMass, AttnTo, Loss, Select, hookimpl\n"
        "ANSWER = Select(supervised=True)\n"
        "@dataclass(frozen=True, kw_only=True)\n"
        "class Mine(Loss):\n"
        f"    needs = ({need},)\n"
        "    def value(self, ctx): return sum(ctx[need].sum() for need in self.needs)\n"
        "@hookimpl\n"
        "def lmmkit_components(): return {'mine': Mine}\n"
    )
    text = PLAIN.replace("stages:", f"plugins:\n  mine: {{use: {tmp_path / 'mine.py'}}}\nstages:", 1)
    text = text.replace("{next_token: 1.0}", "{next_token: 1.0, mine: 0.1}")
    if not codes:
        assert len(prepare(tiny(text=text), trust_files=True).plans)
        return
    with pytest.raises(UserError) as error:
        prepare(tiny(text=text), trust_files=True)
    assert {p.code for p in error.value.problems} == codes


def test_keys_are_read_in_the_view_of_their_queries(tiny, tmp_path):
    (tmp_path / "mine.py").write_text(
        "from dataclasses import dataclass\n"
        "from lmmkit.api import AttnTo, Loss, Select, hookimpl\n"
        "@dataclass(frozen=True, kw_only=True)\n"
        "class Mine(Loss):\n"
        "    needs = (AttnTo(q=Select(view='text_order', role='response'), k=Select(token_name='drt')),)\n"
        "    def value(self, ctx): return ctx[self.needs[0]].sum()\n"
        "@hookimpl\n"
        "def lmmkit_components(): return {'mine': Mine}\n"
    )
    plugins = (
        f"mine: {{use: {tmp_path / 'mine.py'}}}, directed_token: {{place: before_response}}, text_order: {{}}"
    )
    text = PLAIN.replace("stages:", f"plugins: {{{plugins}}}\nstages:", 1)
    text = text.replace("{next_token: 1.0}", "{next_token: 1.0, mine: 0.1, text_order: 1.0}")
    plans = prepare(tiny(text=text), trust_files=True).plans
    for plan in plans.values():
        for strategy, _ in plan.strategies:
            assert _readers(strategy, plan.needs) == {"text_order"}
    assert any(plan.strategies for plan in plans.values())


def weighted(tiny, *overrides: str, names: str = "focal blind cal", by: str = "[focal, cal]"):
    zoo = Path(__file__).parents[2] / "plugins" / "lmmkit_zoo"
    files = {"focal": "focal.py", "blind": "cal.py", "cal": "cal.py", "z_loss": "z_loss.py"}
    files |= {"word_weights": "word_weights.py", "more_words": "word_weights.py:word_weights"}
    settings = dict.fromkeys(("word_weights", "more_words"), ", words: [[red, 2.0]]")
    uses = "".join(
        f"  {name}: {{use: '{zoo / files[name]}'{settings.get(name, '')}}}\n" for name in names.split()
    )
    text = PLAIN.replace("stages:", f"plugins:\n{uses}stages:", 1)
    text = text.replace("{next_token: 1.0}", f"{{next_token: {{weight: 1.0, by: {by}}}}}")
    return prepare(tiny(*overrides, text=text), trust_files=True)


def test_weights_of_rows_are_read_where_the_next_token_loss_names_them(tiny):
    prepared = weighted(tiny, "stages.finetune.losses.next_token={weight: 1.0, by: [focal]}")
    both, one = prepared.plans["pretrain"], prepared.plans["finetune"]
    assert [w.name for w in both.weighers] == ["focal", "cal"] and [w.name for w in one.weighers] == ["focal"]
    assert [view.name for view in both.extra_views] == ["blind"] and one.extra_views == ()
    assert set(one.off) == {"blind", "cal"} and both.active == {"focal", "cal", "blind"}
    assert len(both.needs) == 2 and len(one.needs) == 1 and both.digest != one.digest
    assert prepared.pipeline("pretrain").step(0)[0].head is not None
    assert "  weights focal  of the rows of next_token" in plan_text(prepared)
    assert "for focal, cal" in plan_text(prepared)


def test_a_stage_whose_next_token_loss_names_nothing_is_the_plain_one(tiny):
    plan = weighted(tiny, "stages.finetune.losses.next_token=1.0").plans["finetune"]
    plain = prepare(tiny(text=PLAIN)).plans["finetune"]
    assert plan.weighers == plan.needs == plan.extra_views == () and plan.digest == plain.digest
    off = weighted(tiny, "stages.finetune.losses={next_token: {weight: 0, watch: true, by: [cal]}, z_loss: 1.0}",
                   names="focal blind cal z_loss").plans["finetune"]  # fmt: skip
    assert [w.name for w in off.weighers] == ["cal"], "a loss that is watched is measured with its weights"


@dataclass(frozen=True, kw_only=True)
class BlindReference(Loss):
    """Reads a view with the reference."""

    needs = (LogProb(Select(view="blind"), "reference"),)


def test_a_plan_without_a_reference_makes_no_views_that_only_the_reference_reads(tiny):
    plan = weighted(tiny).plans["pretrain"]
    term, weights = BlindReference(name="reads"), {**plan.weights, "reads": Weight(weight=1.0)}
    also = replace(plan, terms=(term,), needs=(*plan.needs, *term.needs), weights=weights, reference="start")
    assert also.without_reference().extra_views == plan.extra_views != ()
    alone = replace(also, weighers=(), needs=term.needs).without_reference()
    assert alone.terms == alone.needs == alone.extra_views == () and "reads" in alone.off


def test_the_sum_of_weights_is_counted_where_it_is_the_divisor(tiny):
    by = "[word_weights, more_words]"
    per = f"stages.finetune.losses.next_token={{weight: 1.0, by: {by}, per: weight}}"
    prepared = weighted(tiny, per, names="word_weights more_words", by=by)
    rows, sums = prepared.plans["pretrain"], prepared.plans["finetune"]
    assert (rows.per_weight, sums.per_weight) == (False, True)
    assert "  weights more_words  of characters of its answers" in plan_text(prepared)
    assert plan_text(prepared).count("next_token is divided by the sum of the weights") == 1
    same = weighted(tiny, per.replace("per: weight", "per: count"), names="word_weights more_words", by=by)
    assert same.plans["finetune"].digest != sums.digest
    found = {stage: prepared.pipeline(stage).step(0)[0] for stage in prepared.plans}
    assert "weight/next_token" not in found["pretrain"].count and found["finetune"].head is None
    batch = found["finetune"]
    weight_S = torch.ones(batch.count["next_token"]) if batch.weight_S is None else batch.weight_S
    assert batch.count["weight/next_token"] == pytest.approx(float(weight_S.sum()))


def test_a_sum_of_weights_must_be_known_before_the_step(tiny):
    per = "stages.finetune.losses.next_token={weight: 1.0, by: [word_weights, focal], per: weight}"
    with pytest.raises(UserError) as error:
        weighted(tiny, per, names="word_weights focal", by="[word_weights]")
    (problem,) = error.value.problems
    assert problem.code == "plan/per-weight" and problem.got == "`per: weight` and `weigh` of `focal`"


def test_the_names_of_by_are_weights_and_each_weight_is_named(tiny):
    assert codes(weighted, tiny, names="focal blind cal", by="[focal, blind]") == {
        "plan/not-a-token-weight", "plan/unused-token-weight",
    }  # fmt: skip
    with pytest.raises(UserError) as error:
        weighted(tiny, "stages.finetune.losses.focal=1.0")
    (problem,) = error.value.problems
    assert problem.code == "plan/not-a-term" and "`by` of next_token names" in problem.got
    assert codes(weighted, tiny, names="focal cal") == {"plan/no-view"}
