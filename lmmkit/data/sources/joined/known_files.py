"""Names what a file contains that is given as one of COCO's captions or VQA's files and is none."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

# By the keys of their entries; the first that fits counts.
_ENTRIES: tuple[tuple[frozenset[str], str], ...] = (
    (frozenset({"conversations"}), "records of kind `llava`"),
    (frozenset({"messages"}), "records of kind `messages`"),
    (frozenset({"question_id", "choices", "direct_answers"}), "questions of A-OKVQA"),
    (frozenset({"regions"}), "regions of Visual Genome"),
    (frozenset({"qas"}), "questions of Visual Genome"),
    (frozenset({"ref_id", "sentences"}), "expressions of RefCOCO"),
    (frozenset({"segments_info"}), "panoptic segments of COCO"),
    (frozenset({"bbox"}), "objects with boxes, as COCO's instances"),
    (frozenset({"image_id", "caption"}), "captions"),
    (frozenset({"question_id", "question"}), "questions"),
    (frozenset({"image", "question", "answers"}), "questions with their answers, as those of VizWiz"),
)
# By a key of their object.
_OBJECTS = {
    "questions": "VQA's questions",
    "data_subtype": "VQA's annotations",
    "images": "COCO's images without captions, as of a test set",
    "data": "questions with their answers, as those of TextVQA",
}


def entry_name(entry: object) -> str:
    """Returns what entries like this one are; empty if that is not known."""
    keys = entry.keys() if isinstance(entry, Mapping) else ()
    return next((name for known, name in _ENTRIES if known <= set(keys)), "")


def list_name(first: object) -> str:
    """Returns what a JSON list is that begins with this item."""
    name = entry_name(first)
    return f"a JSON list of {name}" if name else "a JSON list"


def object_name(keys: Iterable[str]) -> str:
    """Returns what a JSON object with these keys is."""
    keys = list(keys)
    name = next((f": {_OBJECTS[key]}" for key in _OBJECTS if key in keys), "")
    return f"an object with the keys {', '.join(keys)[:200] or 'none'}{name}"
