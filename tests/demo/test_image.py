"""The image that is drawn for the demo's model."""

from __future__ import annotations

from PIL import Image

from lmmkit.demo.image import draw_image
from lmmkit.scenes.scene import make_scene, split_of


def test_an_image_is_a_held_out_scene_and_its_content_is_named(tmp_path):
    for number in range(3):
        scene, image = make_scene(0, "heldout", number), draw_image(tmp_path, number)
        assert split_of(0, scene.description) == "heldout"
        assert all(thing.name in image.content and thing.place in image.content for thing in scene.things)
        assert len(image.questions) == 3 and Image.open(image.path).size == (scene.width, scene.height)
    assert draw_image(tmp_path, 0).content != draw_image(tmp_path, 1).content
