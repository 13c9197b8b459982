"""Everything that a plugin may import: `from lmmkit.api import ...`.

Names are resolved when they are first used. So the torch-free files of this package (`sample`,
`layout`, `needs`, `model_info`) can be imported without torch.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pluggy import HookimplMarker

    from lmmkit.api.batch import Batch, Ragged
    from lmmkit.api.components import (
        AuxTask,
        ExtraView,
        ImageReducer,
        LearnedTokens,
        Loss,
        RowLoss,
        StepTerm,
        TokenStrategy,
        TokenWeight,
    )
    from lmmkit.api.ctx import Ctx, Metric
    from lmmkit.api.layout import Insert
    from lmmkit.api.model_info import Dims, ImageSpec
    from lmmkit.api.needs import (
        AttnMass,
        AttnTo,
        HiddenAt,
        HiddenMean,
        LogProb,
        LogSumExp,
        Select,
        TeacherAt,
        VisionAt,
    )
    from lmmkit.api.puzzle import Puzzle
    from lmmkit.api.sample import Image, Sample, Turn, View

    hookimpl: HookimplMarker

__all__ = [
    "AttnMass", "AttnTo", "AuxTask", "Batch", "Ctx", "Dims", "ExtraView", "HiddenAt", "HiddenMean", "Image",
    "ImageReducer", "ImageSpec", "Insert", "LearnedTokens", "LogProb", "LogSumExp", "Loss", "Metric", "Puzzle",
    "Ragged", "RowLoss", "Sample", "Select", "StepTerm", "TeacherAt", "TokenStrategy", "TokenWeight", "Turn",
    "View", "VisionAt", "hookimpl",
]  # fmt: skip

_FILES = {
    "batch": ("Batch", "Ragged"),
    "components": (
        "AuxTask",
        "ExtraView",
        "ImageReducer",
        "LearnedTokens",
        "Loss",
        "RowLoss",
        "StepTerm",
        "TokenStrategy",
        "TokenWeight",
        "hookimpl",
    ),
    "ctx": ("Ctx", "Metric"),
    "layout": ("Insert",),
    "model_info": ("Dims", "ImageSpec"),
    "needs": (
        "AttnMass",
        "AttnTo",
        "HiddenAt",
        "HiddenMean",
        "LogProb",
        "LogSumExp",
        "Select",
        "TeacherAt",
        "VisionAt",
    ),
    "puzzle": ("Puzzle",),
    "sample": ("Image", "Sample", "Turn", "View"),
}


def __getattr__(name: str) -> Any:
    for file, names in _FILES.items():
        if name in names:
            return getattr(import_module(f"lmmkit.api.{file}"), name)
    raise AttributeError(f"module `lmmkit.api` has no attribute `{name}`")
