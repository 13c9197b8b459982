"""What of a recipe cannot work with images that are cut into tiles."""

from __future__ import annotations

import pytest

from lmmkit.errors import UserError
from lmmkit.plan.explain import plan_text
from lmmkit.plan.prepare import prepare
from tests.conftest import PLAIN

FIT = "image_fit={kind: anyres, grids: [[1, 2], [2, 1]]}"
CHAT = f"model.chat.{FIT}"
BOTH = (CHAT, f"data.questions.{FIT}")


def problems(recipe) -> list[tuple[str, str]]:
    with pytest.raises(UserError) as error:
        prepare(recipe)
    return [(p.code, p.where) for p in error.value.problems]


def test_tiles_are_in_the_plan(tiny):
    text = plan_text(prepare(tiny(*BOTH, text=PLAIN)))
    assert "  images of questions  anyres 1x2, 2x1: an overview and at most 2 tiles, at most 33 rows" in text
    assert "at most 33 rows; each counts as 9 where ranks share a step" in text
    assert text.count("anyres") == 1, "the stage of captions has none"


@pytest.mark.parametrize(
    ("overrides", "code", "key"),
    [
        ((BOTH[1],), "recipe/conflict", "model.chat.image_fit"),
        ((*BOTH, "model.text.context=33"), "recipe/conflict", "data.questions.image_fit"),
        (
            ("model.vision.image_size=96", *BOTH, "model.text.context=400"),
            "recipe/conflict",
            "model.chat.image_fit",
        ),
    ],
)
def test_sources_need_the_newline_of_the_model_and_room(tiny, overrides, code, key):
    found = problems(tiny(*overrides, text=PLAIN))
    assert any(
        c == code and (w.endswith(f"({key})") or w.endswith(f" {key}") or w.startswith("--set"))
        for c, w in found
    )


@pytest.mark.parametrize("fit", [FIT, "image_fit={kind: native, max_patches: 9}"])
def test_rows_that_are_not_one_for_each_patch_are_refused(tiny, fit):
    """Tries a resampler with as many queries as patches: none of its rows is made of one patch."""
    resampler = "model.connector={kind: resampler, queries: 9, depth: 1, heads: 2}"
    found = problems(tiny(f"model.chat.{fit}", f"data.questions.{fit}", resampler, text=PLAIN))
    assert [code for code, _ in found] == ["plan/tiles"]


def test_terms_that_read_features_are_refused(tiny, tmp_path):
    (tmp_path / "reads.py").write_text(
        "from __future__ import annotations\n"
        "from dataclasses import dataclass\n"
        "from lmmkit.api import Loss, Select, VisionAt, hookimpl\n\n"
        "@dataclass(frozen=True, kw_only=True)\n"
        "class Reads(Loss):\n"
        "    needs = (VisionAt(Select(kind='image'), stage='encoder', detach=True),)\n\n"
        "    def value(self, ctx):\n"
        "        return ctx[self.needs[0]].sum()\n\n"
        "@hookimpl\n"
        "def lmmkit_components():\n"
        "    return {'reads': Reads}\n"
    )
    recipe = tiny(
        *BOTH, f"plugins.reads={{use: '{tmp_path}/reads.py'}}", "stages.finetune.losses.reads=1", text=PLAIN
    )
    with pytest.raises(UserError) as error:
        prepare(recipe, trust_files=True)
    assert [p.code for p in error.value.problems] == ["plan/tiles"]
    assert "`reads`" in error.value.problems[0].got
