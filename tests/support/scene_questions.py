"""Samples with questions on images that do not exist."""

from __future__ import annotations

from lmmkit.api.sample import Image, Sample, Turn


def samples() -> list[Sample]:
    """Returns two questions on each of three scenes."""
    return [
        Sample(
            key=f"{scene}/{i}", images=(Image(f"{scene}.jpg"),), meta={"type": "colour" if i else "count", "scene": scene},
            turns=(Turn("user", f"question {i}", images=1), Turn("assistant", answer)),
        )
        for scene, answers in (("a", ("one", "red")), ("b", ("two", "red")), ("c", ("one", "blue")))
        for i, answer in enumerate(answers)
    ]  # fmt: skip
