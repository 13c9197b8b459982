"""The keys of a record: those that are read, and those that other programs read and lmmkit does not."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

OWN_KEYS = frozenset({"id", "image", "images", "system", "conversations"})
WEIGHTS = ("weight", "loss", "train")  # keys of a turn; 0 or false: the turn is not learned
MEDIA_KEYS = ("video", "videos", "audio", "audios")
MEDIA_MARKERS = ("<video>", "<audio>")
OTHER_FORMS = ("messages", "conversation", "dialog", "instruction", "prompt", "query", "question", "text")

# Keys that change what other programs train on. They are counted, because nothing here carries them out.
_CONTENT = frozenset({
    "messages", "tools", "functions", "history", "instruction", "input", "chosen", "rejected",
    "rejected_response", "objects",
})  # fmt: skip
_IMAGES = frozenset({
    "img", "imgs", "image_path", "image_paths", "image_file", "image_files", "image_url", "image_urls",
})  # fmt: skip
_WEIGHTS = frozenset({*WEIGHTS, "loss_weight", "loss_scale", "sample_weight"})
_CONTENT_OF_TURN = frozenset({
    "tool_calls", "function_call", "reasoning_content", "thinking", "image", "images", "prefix", "mask",
})  # fmt: skip
_WEIGHTS_OF_TURN = _WEIGHTS - frozenset(WEIGHTS)

MOST_NUMBERS = 64  # in a list that a sample's `meta` keeps
Other = str | int | float | tuple[str, ...] | tuple[float, ...]
"""The value of another key, as a sample's `meta` keeps it."""

RARE = frozenset({"images", "system", *MEDIA_KEYS, *_CONTENT, *_IMAGES, *_WEIGHTS})


def unread_keys(record: Mapping[str, object], *, has_images: bool) -> Iterator[str]:
    """Yields a note for each key that changes what other programs train on, and that is not read here.

    A key of the record that may name an image counts only in a record that has no image.
    """
    for key in _given(record, _CONTENT if has_images else _CONTENT | _IMAGES, _WEIGHTS):
        yield f"`{key}` is not read"
    turns = record.get("conversations")
    for turn in turns if isinstance(turns, list) else ():
        if isinstance(turn, dict):
            for key in _given(turn, _CONTENT_OF_TURN, _WEIGHTS_OF_TURN):
                yield f"`{key}` of a turn is not read"


def kept(value: object) -> Other | None:
    """Returns the value of another key as `meta` keeps it; None for a value that it does not keep."""
    if isinstance(value, list):
        texts = all(isinstance(each, str) for each in value)
        numbers = len(value) <= MOST_NUMBERS and all(isinstance(each, int | float) for each in value)
        return tuple(value) if texts or numbers else None
    return value if isinstance(value, str | int | float) else None


def lost_keys(record: Mapping[str, object]) -> Iterator[str]:
    """Yields a note for each other key whose value `meta` does not keep."""
    for key, value in record.items():
        if key not in OWN_KEYS and key not in RARE and value is not None and kept(value) is None:
            what = "no text, number, or list of texts or of at most 64 numbers"
            yield f"`{key[:40]}` is not kept: it is {what}"


def _given(value: Mapping[str, object], content: frozenset[str], weights: frozenset[str]) -> list[str]:
    """Returns the keys in `content` with a value that is not empty, and those in `weights` that are not 1."""
    found = [key for key in value if key in content and value[key]]
    return found + [key for key in value if key in weights and value[key] not in (None, 1)]
