"""The texts of `lmmkit plugins explain` and `trace`: needs in words, and what training gets after the length policy."""

from __future__ import annotations

import ast
import inspect
from typing import get_args

from lmmkit.api.needs import AttnMass, AttnTo, HiddenAt, LogProb, Need, Select
from lmmkit.plan.explain import component_text, need_text, trace_samples
from lmmkit.plan.prepare import prepare
from lmmkit.registry import open_registry
from tests.conftest import PLAIN


def test_each_need_has_words():
    tree = ast.parse(inspect.getsource(need_text))
    cases = {node.cls.id for node in ast.walk(tree) if isinstance(node, ast.MatchClass)}
    assert cases == {need.__name__ for need in get_args(Need)}


def test_a_need_in_words():
    response = Select(supervised=True)
    assert need_text(HiddenAt(Select(token_name="drt"), layer=2)) == (
        "hidden state after 2 blocks at rows (token name drt) of view main"
    )
    assert need_text(AttnMass(q=response)) == (
        "attention mass of supervised rows of view main on rows (kind image) of view main, layers all"
    )
    assert need_text(AttnTo(q=response, k=Select(kind="text"), heads=(0,))) == (
        "attention of supervised rows of view main to rows (kind text) of view main, layers all, heads (0,)"
    )
    assert "by the reference" in need_text(LogProb(response, model="reference"))


def explained(name: str) -> str:
    found = open_registry({name: name}, where={name: name}).components[name]
    return component_text(name, found)


def test_a_component_is_explained_with_what_it_reads():
    assert "reads, with the default settings:\n  attention mass of supervised rows" in explained(
        "guided_loss"
    )
    assert "provides tokens: drt" in explained("directed_token")
    assert "makes views: text_order" in explained("text_order")
    assert "depends on the required settings" in explained("image_order")


def test_a_trace_has_the_layout_that_is_left_after_truncation(tiny):
    whole, cut = (
        list(trace_samples(prepare(tiny(*words, text=PLAIN)), "pretrain", 1))
        for words in ((), ("model.text.context=16", "stages.pretrain.batch.too_long=truncate"))
    )
    (view,) = (line for line in cut if line.startswith("  view main"))
    assert view.endswith("  16 rows") and "  16 rows" not in "".join(whole)
    assert "  1 view cut to the context" in cut
    layout = cut[cut.index(view) + 1]
    assert layout != whole[whole.index(next(x for x in whole if "view main" in x)) + 1]
