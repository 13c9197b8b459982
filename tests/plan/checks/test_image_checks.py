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


def test_rows_that_are_not_one_for_each_patch_are_refused(tiny):
    """Tries a resampler with as many queries as patches: none of its rows is made of one patch."""
    resampler = "model.connector={kind: resampler, queries: 9, depth: 1, heads: 2}"
    assert [code for code, _ in problems(tiny(*BOTH, resampler, text=PLAIN))] == ["plan/tiles"]


def test_a_grid_of_native_images_fits_the_factor_of_the_connector(tiny):
    fit, pool = "image_fit={kind: native, max_patches: %d, multiple: %d}", "{kind: average_pool, factor: 3}"
    for most, multiple, right in ((30, 3, True), (72, 6, True), (30, 1, False), (30, 2, False)):
        keys = [f"{key}.{fit % (most, multiple)}" for key in ("model.chat", "data.questions")]
        read = tiny(*keys, f"model.connector={pool}", text=PLAIN)
        if right:
            assert f"native, at most {most} patches, at most {most // 9} rows" in plan_text(prepare(read))
            continue
        with pytest.raises(UserError) as error:
            prepare(read)
        assert {(p.code, p.expected, p.hint) for p in error.value.problems} == {
            ("recipe/conflict", "a multiple of 3", "Write `multiple: 3`.")
        }
        assert all(f"`multiple: {multiple}`" in p.got and "factor: 3" in p.got for p in error.value.problems)


def test_the_rows_of_native_images_fit_into_the_context(tiny):
    """Has 2,700 patches, which do not fit, and the nine rows of a resampler, which do."""
    keys = [
        f"{key}.image_fit={{kind: native, max_patches: 2700, multiple: 3}}"
        for key in ("model.chat", "data.questions")
    ]
    for connector, codes in (
        ("{kind: linear}", {"recipe/conflict"}),
        ("{kind: resampler, queries: 9, depth: 1, heads: 2}", set()),
    ):
        read = tiny(*keys, f"model.connector={connector}", text=PLAIN)
        if not codes:
            assert "at most 9 rows" in plan_text(prepare(read))
        else:
            assert {code for code, _ in problems(read)} == codes


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
