"""An image for the demo's model: a scene that it was not trained on."""

from __future__ import annotations

import random
from dataclasses import dataclass
from pathlib import Path

from lmmkit.scenes.draw import draw
from lmmkit.scenes.questions import Asker
from lmmkit.scenes.scene import make_scene


@dataclass(frozen=True, kw_only=True)
class DrawnImage:
    """Describes an image for the model. `content`: what is in it, in words. `questions`: some that the model knows."""

    path: Path
    content: str
    questions: tuple[str, ...]


def draw_image(folder: Path, number: int) -> DrawnImage:
    """Draws a scene into a folder. It is one of those that the model was not trained on.

    Args:
        folder: an existing folder.
        number: which of these scenes.
    """
    scene = make_scene(0, "heldout", number)  # the seed of the data that the model was trained on
    path = folder / f"scene-{number}.png"
    draw(scene).save(path)
    things = [f"{thing.size} {thing.name} ({thing.place})" for thing in scene.things]
    asked = Asker().ask(scene, 3, random.Random(number))
    return DrawnImage(path=path, content=", ".join(things), questions=tuple(each.text for each in asked))
