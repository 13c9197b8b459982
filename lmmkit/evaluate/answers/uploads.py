"""Files for a test server, with a manifest. A task that only a server can score has no score here, never 0."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path

import lmmkit
from lmmkit.evaluate.answers.scorer import Scorer
from lmmkit.evaluate.benchmarks.benchmark import Item
from lmmkit.runs.files import write_aside, write_json_atomic

UPLOAD, MANIFEST = "upload", "manifest.json"


def write_uploads(
    scorer: Scorer, items: Sequence[Item], answers: Mapping[str, str], folder: Path, *, split: str
) -> Path | None:  # fmt: skip
    """Writes the files that a server takes into FOLDER/upload; returns that folder, or None without a server.

    The files are complete or not there. Raises `UserError` if a server would not accept them.
    """
    files = scorer.upload(items, answers)
    if not files:
        return None
    target = folder / UPLOAD
    with write_aside(target, replace=True) as aside:
        for name, content in files.items():
            (aside / name).write_bytes(content)
        write_json_atomic(
            aside / MANIFEST,
            {
                "benchmark": scorer.name, "split": split, "status": scorer.status(items),
                "items": len(items), "empty": sum(not answers[item.id].strip() for item in items),
                "normaliser": scorer.normaliser, "lmmkit": lmmkit.__version__,
                "files": {
                    name: {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
                    for name, content in files.items()
                },
            },
        )  # fmt: skip
    return target
