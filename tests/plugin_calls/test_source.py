"""What the source of a plugin shows: names that nothing calls, imports of the inside of lmmkit, texts."""

from __future__ import annotations

import pytest

import lmmkit
from lmmkit.plugin_calls.source import OPEN, inner_imports, may_read, unused
from lmmkit.registry import file_components

FILE = """
from dataclasses import dataclass
IMPORT
from lmmkit.api import AuxTask, HiddenAt, Loss, RowLoss, Select, StepTerm, TokenWeight, hookimpl

@dataclass(frozen=True, kw_only=True)
class Mine(KIND):
    setting: str = "chosen"
    BODY

@hookimpl
def lmmkit_components():
    return {"mine": Mine}
"""


def built(tmp_path, kind: str, body: str, line: str = ""):
    text = FILE.replace("KIND", kind).replace("BODY", body).replace("IMPORT", line)
    (tmp_path / "mine.py").write_text(text)
    return file_components(tmp_path / "mine.py", trust_files=True)["mine"].cls(name="mine")


@pytest.mark.parametrize(
    ("kind", "body", "name"),
    [
        ("Loss", "def metric(self, ctx): ...", "metric"),
        ("Loss", "need = ()", "need"),
        ("Loss", "def weigh(self, ctx): ...", "weigh"),
        ("TokenWeight", "def value(self, ctx): ...", "value"),
        ("AuxTask", "def view(self, sample, rng): ...", "view"),
        ("AuxTask", "def score(self, view, text): ...", "score"),
        ("AuxTask", "text_loss = True\n    def value(self, ctx): ...", "value"),
        ("RowLoss", "def value(self, ctx): ...", "value"),
        ("StepTerm", "def value(self, ctx): ...", "value"),
    ],
)
def test_a_method_that_nothing_calls_is_found(kind, body, name, tmp_path):
    assert [found.name for found in unused(built(tmp_path, kind, body))] == [name]


@pytest.mark.parametrize(
    ("kind", "body"),
    [
        ("Loss", "def metrics(self, ctx): ..."),
        ("Loss", "metric: int = 3"),
        ("Loss", "def logits(self, ctx): ..."),
        ("Loss", "def metric(self): ...\n    def value(self, ctx): return self.metric()"),
        ("Loss", "def value(self, ctx): return getattr(self, 'metric')()\n    def metric(self): ..."),
        ("AuxTask", "def value(self, ctx): ..."),
        (
            "AuxTask",
            "text_loss: bool = True\n    def value(self, ctx): ...\n    def score(self, view, text): ...",
        ),
        ("RowLoss", "def rows(self, logits_CV, target_C): ...\n    at = Select(view='other')"),
    ],
)
def test_a_method_of_the_kind_or_of_the_plugin_itself_is_not(kind, body, tmp_path):
    assert list(unused(built(tmp_path, kind, body))) == []


@pytest.mark.parametrize(
    ("line", "found"),
    [
        (
            "from lmmkit.model.layers import RMSNorm",
            ["`lmmkit.model.layers`, which may change in any release"],
        ),
        ("from lmmkit import objective", ["`lmmkit.objective`, which may change in any release"]),
        ("import lmmkit.testing", []),
        ("from lmmkit import api, load", []),
        ("import lmmkit", []),
        ("import math, torch", []),
    ],
)
def test_an_import_of_the_inside_is_found(line, found, tmp_path):
    assert [each.got for each in inner_imports(built(tmp_path, "Loss", "", line))] == found


def test_all_public_names_may_be_imported():
    assert set(OPEN) == {
        "lmmkit",
        "lmmkit.api",
        "lmmkit.testing",
        *(f"lmmkit.{name}" for name in lmmkit.__all__),
    }


def test_keys_may_be_texts_of_the_source_or_settings(tmp_path):
    mine = built(tmp_path, "Loss", "def labels(self, sample, dims): return sample.meta['rejected']")
    assert [key for key in ("chosen", "rejected", "sample", "reject") if may_read(mine, key)] == [
        "chosen",
        "rejected",
    ]
