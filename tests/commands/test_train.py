"""What the last line of `lmmkit train` names."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from lmmkit.commands.train import _following
from lmmkit.recipe import read_text
from tests.conftest import PLAIN


@pytest.mark.parametrize(("stage", "evaluated", "expected"), [
    (None, True, "lmmkit eval 'my run' --trust-files"),
    (None, False, "lmmkit chat 'my run' --trust-files"),
    ("pretrain", True, "the same command, but with `--stage finetune --resume`"),
    ("finetune", True, "lmmkit eval 'my run' --trust-files"),
])  # fmt: skip
def test_what_follows_a_training(stage, evaluated, expected):
    recipe = read_text(PLAIN)
    recipe = recipe if evaluated else replace(recipe, evaluate=None)
    assert _following(recipe, Path("my run"), stage, True) == expected
