"""Draws small scenes and writes them as a LLaVA data set, so that a real run needs no download."""

from lmmkit.scenes.biased import write_biased_scenes
from lmmkit.scenes.report import SceneReport
from lmmkit.scenes.world import World
from lmmkit.scenes.write import write_scenes

__all__ = ["SceneReport", "World", "write_biased_scenes", "write_scenes"]
