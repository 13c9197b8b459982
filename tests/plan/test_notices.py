"""What is reported before a run although it is no problem."""

from __future__ import annotations

import json

import pytest
from typer.testing import CliRunner

from lmmkit.cli import app
from lmmkit.plan.notices import notices
from lmmkit.plan.prepare import prepare
from tests.conftest import DIRECT, PLAIN

TEXT = "data.texts={kind: llava, records: texts.json, images: ., template: vicuna_v1, image_fit: pad}"


@pytest.fixture
def texts(scenes, tmp_path):
    """Returns the setting of a source that has these keys in its records, and no image."""

    def made(**keys: object) -> str:
        turns = [{"from": "human", "value": "What is one?"}, {"from": "gpt", "value": "a number"}]
        path = tmp_path / "texts.json"
        path.write_text(json.dumps([{"id": str(i), "conversations": turns, **keys} for i in range(9)]))
        return TEXT.replace("texts.json", str(path))

    return made


def found(tiny, *overrides: str) -> list[str]:
    return notices(prepare(tiny(*overrides, text=PLAIN)))


def test_a_recipe_that_fits_its_data_has_none(tiny, texts):
    assert found(tiny) == []
    assert found(tiny, texts(), "stages.finetune.data={texts: 0.5, questions: 0.5}") == []


def test_a_plugin_whose_parameters_no_stage_trains_is_reported(tiny):
    keys = {name: f"stages.{name}.train={{connector: {{}}}}" for name in ("pretrain", "finetune")}
    lines = notices(prepare(tiny(*keys.values(), text=DIRECT)))
    named = [line for line in lines if "which keep their first values" in line]
    assert {line.split(":")[0] for line in named} == {"stages.pretrain.train", "stages.finetune.train"}
    assert any("plugin image_order has parameters" in line for line in named)
    lines = notices(prepare(tiny(keys["finetune"], text=DIRECT)))
    assert not any("which keep their first values" in line for line in lines), (
        "the first stage has trained it"
    )


def test_keys_that_are_not_read_are_reported_with_their_number(tiny, texts):
    lines = found(tiny, texts(tools="search"), "stages.finetune.data={texts: 0.5, questions: 0.5}")
    assert lines == ["data.texts: 9 records: `tools` is not read"]


READER = """
from dataclasses import dataclass
from lmmkit.api import LogProb, Select, TokenWeight, hookimpl

@dataclass(frozen=True, kw_only=True)
class Mine(TokenWeight):
    key: str = "quality"
    needs = (LogProb(Select()),)
    def labels(self, sample, dims):
        return {"times": float(sample.meta.get(self.key, 1)) + len(sample.meta.get("objects", ()))}
    def weigh(self, ctx):
        return ctx.label("times")[ctx.batch.gathers[self.needs[0]].view_Q]

@hookimpl
def lmmkit_components():
    return {"mine": Mine}
"""


@pytest.mark.parametrize(("key", "unread"), [("weight", ["tools"]), ("score", ["tools", "weight"])])
def test_a_key_that_a_plugin_reads_is_not_reported(key, unread, tiny, texts, tmp_path):
    """Takes a key in the file of the plugin (`objects`), and one that is a setting of it."""
    (tmp_path / "mine.py").write_text(READER)
    uses = f"plugins:\n  mine: {{use: {tmp_path / 'mine.py'}, key: {key}}}\nstages:"
    text = PLAIN.replace("stages:", uses, 1).replace(
        "{next_token: 1.0}", "{next_token: {weight: 1, by: [mine]}}"
    )
    records = texts(tools="search", objects=["a dog"], weight=2)
    recipe = tiny(records, "stages.finetune.data={texts: 0.5, questions: 0.5}", text=text)
    lines = notices(prepare(recipe, trust_files=True))
    assert lines == [f"data.texts: 9 records: `{each}` is not read" for each in unread]


def test_a_trainable_part_that_no_record_reaches_is_reported(tiny, texts):
    only = (texts(), "stages.finetune.data={texts: 1}")
    (line,) = found(tiny, *only)
    assert line == "stages.finetune.train: connector is trainable, but no record of this stage has an image"
    lines = found(tiny, *only, "stages.finetune.train={vision: {}, text: {}, connector: {}}")
    assert [line.split(": ")[1].split(" is")[0] for line in lines] == ["vision", "connector"]
    assert found(tiny, *only, "stages.finetune.train={text: {}}") == []


def test_a_chat_format_that_the_last_stage_did_not_learn_is_reported(tiny, texts):
    (line,) = found(tiny, "model.chat={template: plain, image_fit: crop}", "model.chat.image_fit=pad")
    assert line.startswith("model.chat.template: plain, but") and "vicuna_v1 (questions)" in line
    (line,) = found(tiny, "model.chat.image_fit=crop")
    assert line.startswith("model.chat.image_fit: crop, but") and "pad (questions)" in line
    text_only = (texts(), "stages.finetune.data={texts: 1}", "stages.finetune.train={text: {}}")
    assert found(tiny, *text_only, "model.chat.image_fit=crop") == [], "no image has that form"


def test_a_system_prompt_that_only_chat_or_only_the_records_have_is_reported(tiny, texts):
    text_only = ("stages.finetune.data={texts: 1}", "stages.finetune.train={text: {}}")
    (line,) = found(tiny, "model.chat.system=Be brief.")
    assert line.startswith("model.chat.system: no record")
    (line,) = found(tiny, texts(system="Be brief."), *text_only)
    assert line.startswith("model.chat.system: not given, but every record")
    assert found(tiny, texts(system="Be brief."), *text_only, "model.chat.system=Be brief.") == []


def test_check_train_and_data_check_print_them(scenes, texts, tmp_path):
    recipe = tmp_path / "mine.yaml"
    recipe.write_text(PLAIN)
    changes = (
        texts(history=["x"]), "stages.finetune.data={texts: 1}", "stages.pretrain.length.steps=1",
        "stages.finetune.length.steps=1",
    )  # fmt: skip
    for command in (("check",), ("train", "--out", str(tmp_path / "run")), ("data", "check")):
        words = [word for change in changes for word in ("--set", change)]
        result = CliRunner().invoke(app, [*command, str(recipe), "--root", str(scenes), *words])
        shown = " ".join((result.stdout + result.stderr).split())
        assert result.exit_code == 0, shown
        assert shown.count("9 records: `history` is not read") == 1
        assert ("connector is trainable" in shown) == (command[0] != "data")


def test_a_reference_that_no_term_reads_is_reported(tiny):
    (line,) = found(tiny, "stages.finetune.reference=start")
    assert line == "stages.finetune.reference: no active term reads a reference, so none is computed"


def test_images_of_unlike_rows_are_reported_where_records_are_grouped_by_length(tiny):
    fit = "image_fit={kind: native, max_patches: 9}"
    overrides = f"data.questions.{fit}", f"data.heldout.{fit}", f"model.chat.{fit}"
    (line,) = found(tiny, *overrides, "stages.finetune.batch.group=length")
    assert line.startswith(
        "stages.finetune.batch.group: `length` counts words only; the images of questions "
    )
    assert found(tiny, *overrides, "stages.finetune.batch.group=modality") == []
    assert found(tiny, "stages.finetune.batch.group=length") == []
