"""Token strategies in plans: registers that no term reads, and each insert that is refused."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch

from lmmkit.api.sample import Sample, Turn, View
from lmmkit.errors import UserError
from lmmkit.plan.notices import notices
from lmmkit.plan.prepare import prepare
from tests.conftest import PLAIN

FILE = """
from dataclasses import dataclass
from lmmkit.api import HiddenAt, Insert, LearnedTokens, Loss, Select, TokenStrategy, hookimpl

@dataclass(frozen=True, kw_only=True)
class Mine(TokenStrategy):
    provides = ("mine",)
    unread = {unread}
    def modules(self, dims):
        return {module}
    def edit(self, view):
        return {edit}

@dataclass(frozen=True, kw_only=True)
class Reader(Loss):
    needs = (HiddenAt(Select(token_name="mine")),)
    def value(self, ctx):
        return ctx[self.needs[0]].square().sum()

@hookimpl
def lmmkit_components():
    return {{"mine": Mine, "reader": Reader}}
"""
MODULE = "LearnedTokens(2, dims.width)"


@pytest.fixture
def prepared(tiny, tmp_path):
    """prepared(edit, ...) -> the plan of a recipe with one token strategy, from a file."""

    def make(edit: str, *overrides: str, module: str = MODULE, unread: bool = True, read: bool = False):
        file = tmp_path / "mine.py"
        file.write_text(FILE.format(edit=edit, module=module, unread=unread))
        uses = f"plugins:\n  mine: {{use: {file}}}\n" + f"  reader: {{use: {file}}}\n" * read
        text = PLAIN.replace("stages:", f"{uses}stages:", 1)
        text = text.replace("{next_token: 1.0}", "{next_token: 1.0, reader: 0.1}") if read else text
        return prepare(tiny(*overrides, text=text), trust_files=True)

    return make


ON = "stages.pretrain.tokens=[mine]"
PLACES = ("start", "before_image", "after_image", "before_response", "after_response")


@pytest.mark.parametrize("place", PLACES)
def test_a_stage_that_names_registers_has_them_in_every_view_and_in_inference(prepared, place):
    made = prepared(f"[Insert('{place}', 'mine', 2)]", ON)
    on, off = made.plans["pretrain"], made.plans["finetune"]
    assert [(s.name, views) for s, views in on.strategies] == [("mine", None)]
    assert on.inference_plugins == ("mine",) and on.active == {"mine"}
    assert off.strategies == () and off.off == {"mine": "not in `tokens` of this stage"}
    batch = made.pipeline("pretrain").step(0)[0]
    scatter = next(s for s in batch.scatters if s.source == "plugins.mine")
    assert set(scatter.item_N.tolist()) == {0, 1} and len(scatter.row_N) % 2 == 0


def test_registers_that_no_stage_names_change_no_batch_and_are_noticed(prepared, tiny):
    made, plain = prepared("[Insert('after_image', 'mine', 2)]"), prepare(tiny(text=PLAIN))
    for stage in plain.plans:
        assert made.plans[stage].digest == plain.plans[stage].digest
        ours, theirs = made.pipeline(stage).step(0)[0], plain.pipeline(stage).step(0)[0]
        assert torch.equal(ours.id_T, theirs.id_T) and len(ours.scatters) == len(theirs.scatters) == 1
    (line,) = (line for line in notices(made) if "mine" in line)
    assert "no stage names it in `tokens`" in line
    assert not any("mine" in line for line in notices(prepared("[Insert('after_image', 'mine', 2)]", ON)))


def test_registers_may_be_read_as_well(prepared):
    plan = prepared("[Insert('after_image', 'mine', 2)]", read=True).plans["finetune"]
    assert [s.name for s, _ in plan.strategies] == ["mine"] and len(plan.needs) == 1


def test_rows_behind_a_token_of_the_vocabulary(prepared):
    made = prepared("[Insert('after_token', 'mine', 2, token=' red')]", ON, read=True)
    tokenizer, views = made.tokenizer, made.views("pretrain")
    (red,) = tokenizer.encode_continued(" red")
    sample = Sample(key="s", turns=(Turn("user", "red or not?"), Turn("assistant", "a red red circle")))
    layout = views.lay_out(View(sample=sample))
    behind = [(a.ids[-1], b.token_name, b.n) for a, b in pairwise(layout) if b.owner]
    assert len(behind) >= 2 and set(behind) == {(red, "mine", 2)}
    assert sum(list(span.ids).count(red) for span in layout) == len(behind)
    ended = prepared("[Insert('after_token', 'mine', 2, token='</s>')]", ON).views("pretrain")
    assert ended.lay_out(View(sample=sample))[-1].token_name == "mine"


@pytest.mark.parametrize(
    ("edit", "module"),
    [
        ("[Insert('inside_image', 'mine', 2)]", MODULE),
        ("[Insert('after_image', 'other', 2)]", MODULE),
        ("[Insert('after_image', 'mine', 1)]", MODULE),
        ("[Insert('after_image', 'mine', 3)]", MODULE),
        ("[Insert('after_image', 'mine', 0)]", "LearnedTokens(0, dims.width)"),
        ("[Insert('after_image', 'mine', 2)]", "None"),
        ("[Insert('after_token', 'mine', 2)]", MODULE),
        ("[Insert('after_image', 'mine', 2, token=' red')]", MODULE),
        ("[Insert('start', 'mine', 2)] if view.sample.images else [Insert('begin', 'mine', 2)]", MODULE),
        ("[Insert('start', 'mine', 2 if len(view.sample.turns) < 4 else 5)]", MODULE),
    ],
)
def test_an_insert_that_is_not_possible_is_refused(prepared, edit, module):
    assert codes(prepared, edit, ON, module=module) == {"plugin/insert"}


@pytest.mark.parametrize(
    ("edit", "module"),
    [
        ("[Insert('after_image', 'mine', 2)]", "LearnedTokens(2, dims.width + 1)"),
        ("[('after_image', 'mine', 2)]", MODULE),
        ("None", MODULE),
    ],
)
def test_what_is_no_insert_and_no_embedding_is_refused(prepared, edit, module):
    assert codes(prepared, edit, ON, module=module) == {"plugin/returned"}


@pytest.mark.parametrize(
    "edit",
    [
        "[Insert('after_image' if len(view.sample.key) % 2 else 'start', 'mine', 2)]",
        "[Insert('after_image', 'mine', 2)] * (hash(view.sample.key) % 1000)",
    ],
)
def test_inserts_that_depend_on_the_key_of_the_sample_are_refused(prepared, edit):
    assert codes(prepared, edit, ON) == {"plugin/edit-key"}


@pytest.mark.parametrize("token", ["<look>", "red circle", "", " the large red"])
def test_a_token_that_the_vocabulary_lacks_is_refused(prepared, token):
    edit = f"[Insert('after_token', 'mine', 2, token={token!r})]"
    assert codes(prepared, edit, ON) == {"plan/token"}


def test_tokens_that_need_a_reader_are_refused_in_a_stage_s_tokens(prepared):
    insert = "[Insert('after_image', 'mine', 2)]"
    assert codes(prepared, insert, ON, unread=False, read=True) == {"plan/tokens"}
    assert codes(prepared, insert, "stages.pretrain.tokens=[reader]", read=True) == {"plan/tokens"}
    assert codes(prepared, "[Insert('end', 'mine', 2)]", ON) == {"plan/tokens"}, "nothing attends to them"
    assert codes(prepared, insert, unread=False) == {"plan/unread-token"}
    with pytest.raises(UserError, match="recipe/unknown-name"):
        prepared(insert, "stages.pretrain.tokens=[mien]")


def codes(prepared, edit: str, *overrides: str, **settings) -> set[str]:
    with pytest.raises(UserError) as error:
        prepared(edit, *overrides, **settings)
    assert all("mine" in p.where or "tokens" in p.where for p in error.value.problems)
    return {p.code for p in error.value.problems}
