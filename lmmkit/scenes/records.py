"""Records in LLaVA's format."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from lmmkit.scenes.scene import Scene


def with_marker(text: str, first: bool) -> str:
    """Returns a question with the marker of its image before it, or after it."""
    return f"<image>\n{text}" if first else f"{text}\n<image>"


def turns(pairs: Iterable[tuple[str, str]]) -> list[dict[str, str]]:
    """Returns the turns of a conversation from its questions and answers."""
    return [
        {"from": who, "value": text}
        for pair in pairs
        for who, text in zip(("human", "gpt"), pair, strict=True)
    ]


def image_record(scene: Scene, pairs: Iterable[tuple[str, str]]) -> dict[str, Any]:
    """Returns the record of a conversation about the image of a scene."""
    return {"id": scene.id, "image": scene.image, "conversations": turns(pairs)}
