"""Frozen weights on disk: written by the first save of a stage, and shared by its checkpoints.

    RUN/checkpoints/frozen-00000500-<id>/    written at step 500
        a-frozen-00000.safetensors ...       of several ranks a-frozen-rank00001-00000 ...
        b-frozen-00000.safetensors ...       the second copy, read if the first is damaged

Every manifest of the stage lists them. A folder that no checkpoint lists is removed by the next save, which
also removes old checkpoints, or at the next start.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from lmmkit.errors import UserError
from lmmkit.runs.run_folder import RunFolder
from lmmkit.training.checkpoint import manifest
from lmmkit.training.checkpoint.read import steps
from lmmkit.training.checkpoint.tensor_files import RankSlices


@dataclass
class OnDisk:
    """Holds the files of the stage's frozen weights, and this rank's `marks` when they were written."""

    marks: Mapping[str, tuple[int, int]] = field(default_factory=dict)
    files: manifest.Frozen | None = None

    def matches(self, slices: RankSlices, checkpoints: Path) -> bool:
        """Returns whether the weights are unchanged, and both copies exist with the right sizes."""
        if self.files is None or self.marks != slices.marks:
            return False
        for name, (size, _) in self.files["files"].items():
            paths = [checkpoints / copy for copy in manifest.copies(self.files, name)]
            if not all(path.is_file() and path.stat().st_size == size for path in paths):
                return False
        return True


def unlisted(run: RunFolder) -> list[Path]:
    """Returns the folders of frozen weights that no checkpoint lists; none while a manifest is damaged."""
    try:
        listed = {manifest.read(path).get("frozen", {}).get("folder") for path in steps(run)}
    except UserError:
        return []
    found = sorted(run.checkpoints.glob("frozen-*"))
    return [path for path in found if manifest.FROZEN.fullmatch(path.name) and path.name not in listed]
