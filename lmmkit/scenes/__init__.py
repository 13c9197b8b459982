"""Draws small scenes and writes them as a LLaVA data set, so that a real run needs no download."""

from lmmkit.scenes.report import SceneReport
from lmmkit.scenes.write import write_scenes

__all__ = ["SceneReport", "write_scenes"]
