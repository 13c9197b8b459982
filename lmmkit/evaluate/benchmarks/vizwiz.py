"""VizWiz: questions that blind people asked about their photos; many cannot be answered from the image."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path, PurePath

from lmmkit.errors import raise_all
from lmmkit.errors.benchmarks import OFFICIAL_VERSION
from lmmkit.evaluate.benchmarks.benchmark import Benchmark, Item, Verdict
from lmmkit.evaluate.group_means import group_means
from lmmkit.evaluate.official_files import OfficialFiles, upload_problems
from lmmkit.evaluate.task import Figure
from lmmkit.evaluate.vqa_text import ASK_SHORT, m4c, m4c_accuracy, m4c_scores
from lmmkit.progress import plural

_ASK_UNANSWERABLE = "When the provided information is insufficient, respond with 'Unanswerable'."
_SPEC = {"image": str, "question": str}
_ANSWERED = _SPEC | {"answers": list, "answer_type": str}


class VizWiz(Benchmark):
    """Reads `SPLIT.json` and the images in `SPLIT/`. The answers of `test` are scored by a server, from a file with
    the normalised answer to every image."""

    name = "vizwiz"
    title = "VizWiz"
    splits = ("val", "test")
    max_new_tokens = 128
    headline = "accuracy"
    caveats = ("Papers report the test split, which only a server can score; `val` gives other numbers.",)
    normaliser = "m4c 1"

    def items(self, files: Path, *, split: str, cache: Path) -> Sequence[Item]:
        """Returns the questions in official order; the id is the number of the line in LLaVA's question file."""
        official = OfficialFiles(files, split=split, splits=self.splits)
        path = official.find(f"{split}.json", under=("", "Annotations", "annotations"))
        value = official.json(path)
        records = official.records(path, value, _ANSWERED if split == "val" else _SPEC, key="image")
        golds: list[list[str] | None] = [None] * len(records)
        if path is not None:
            _check_split(official, path, [record["image"] for record in records], split)
            if split == "val":
                golds = [official.human_answers(path, r["image"], r["answers"]) for r in records]
        images = official.images(official.find_folder(split), [record["image"] for record in records])
        official.check()
        return [
            Item(
                id=str(i), prompt=f"{record['question'].capitalize()}\n{_ASK_UNANSWERABLE}\n{ASK_SHORT}",
                images=(image,), gold=gold, cluster=record["image"],
                groups={} if gold is None else {"answer_type": record["answer_type"]},
            )
            for i, (record, image, gold) in enumerate(zip(records, images, golds, strict=True))
        ]  # fmt: skip

    def verdict(self, item: Item, answer: str) -> Verdict:
        """Scores the normalised answer against the ten human answers; None in split `test`."""
        score = None if item.gold is None else m4c_accuracy(answer, item.gold)
        return Verdict(parsed=m4c(answer) or None, score=score)

    def figures(self, items: Sequence[Item], verdicts: Sequence[Verdict]) -> dict[str, Figure]:
        """Returns the soft accuracy, of each type of answer too."""
        if self.status(items) != "scored":
            return {}
        return group_means(
            "accuracy", items, [verdict.score or 0.0 for verdict in verdicts], kinds=["answer_type"],
            constants=[m4c_scores(item.gold) for item in items],
        )  # fmt: skip

    def upload(self, items: Sequence[Item], answers: Mapping[str, str]) -> Mapping[str, bytes]:
        """Returns the file with the normalised answer to every image."""
        if self.status(items) == "scored":
            return {}
        raise_all(upload_problems(self.name, [item.id for item in items], answers))
        lines = [{"image": PurePath(item.images[0]).name, "answer": m4c(answers[item.id])} for item in items]
        return {"vizwiz_test.json": json.dumps(lines).encode()}


def _check_split(official: OfficialFiles, path: Path, images: Sequence[str], split: str) -> None:
    """Notes names of images that belong to another split."""
    other = [
        name for name in images if name.startswith("VizWiz_") and not name.startswith(f"VizWiz_{split}_")
    ]
    if other:
        got = f"{plural(len(other), 'image')} such as {other[0]}"
        official.note(OFFICIAL_VERSION, path, got=got, expected=f"images VizWiz_{split}_*")
