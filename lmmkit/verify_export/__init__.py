"""Opens an export again and compares it with the model: tensors, logits, pixels, prompts and greedy answers.

A llava-hf or llava-next folder is opened by transformers, which must be installed; the formats that transformers
cannot open are opened by lmmkit. Both models are in memory at once, in float32.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

import torch

from lmmkit.errors import MachineError
from lmmkit.errors.weights import EXPORT_DIFFERS
from lmmkit.import_export import Format
from lmmkit.inference.load import find_model_folder, load
from lmmkit.progress import moving, working
from lmmkit.verify_export.by_lmmkit import compare_adapter, compare_by_lmmkit
from lmmkit.verify_export.by_transformers import (
    BY_TRANSFORMERS,
    compare_by_transformers,
    require_transformers,
)
from lmmkit.verify_export.comparison import ExportComparison, prompts_of
from lmmkit.weights import model_folder

__all__ = ["ExportComparison", "prompts_of", "require_equal", "require_transformers", "verify_export"]


def verify_export(
    path: Path, folder: Path, kind: Format, *, dtype: torch.dtype | None = None
) -> list[ExportComparison]:
    """Returns all comparisons of a model with its export. `path`, `kind`, `dtype`: as it was exported."""
    require_transformers(kind)
    source = find_model_folder(path)
    if kind == "peft":
        return compare_adapter(source, folder)
    with tempfile.TemporaryDirectory() as aside, working("comparing the export with the model", 5) as move:
        with moving(move, 0, 1):
            ours = load(source, device="cpu")
        kept = dtype or model_folder.dtype_of(source)
        for tensor in model_folder.unique_tensors(ours.objective).values():
            tensor.copy_(tensor.to(kept))
        prompts = list(prompts_of(ours, Path(aside)))
        if kind in BY_TRANSFORMERS:
            return compare_by_transformers(ours, source, folder, kept, prompts, move)
        return compare_by_lmmkit(ours, folder, prompts, move)


def require_equal(folder: Path, found: list[ExportComparison]) -> None:
    """Raises `MachineError` if a comparison found a difference."""
    differing = [each for each in found if each.equal is False]
    if differing:
        raise MachineError(EXPORT_DIFFERS.at(f"{folder}: {each.what}", got=each.result) for each in differing)
