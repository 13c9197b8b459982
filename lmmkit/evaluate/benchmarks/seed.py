"""SEED-Bench (v1): four options, about an image or one frame of a video."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from lmmkit.errors import raise_all
from lmmkit.errors.benchmarks import OFFICIAL_DUPLICATE, OFFICIAL_RECORD
from lmmkit.evaluate.benchmarks.benchmark import Benchmark, Item, Verdict
from lmmkit.evaluate.group_means import group_means
from lmmkit.evaluate.official_files import OfficialFiles, upload_problems
from lmmkit.evaluate.option_letters import ASK_LETTER, lenient_letter, lettered
from lmmkit.evaluate.task import Figure

LETTERS = "ABCD"
TWICE = "49914"  # the official file gives two questions this id
# by the number of questions about images and videos
QUESTION_SETS = {
    (14_233, 5_009): "first question set (19,242 questions, until 2023-11)",
    (14_233, 3_757): "screened question set (17,990 questions, since 2023-11)",
}
_SPEC = {
    "question_id": (str, int), "question": str, "choice_a": str, "choice_b": str, "choice_c": str, "choice_d": str,
    "answer": str, "data_type": str, "data_id": (str, int), "question_type_id": int,
}  # fmt: skip


class SeedBench(Benchmark):
    """Scores letters: right if the answer is exactly the letter. The lenient parser also accepts "B." and "(B) red".

    Needs `SEED-Bench.json`, the images in `SEED-Bench-image/`, and for videos the middle frames that LLaVA's script
    extracts to `SEED-Bench-video-image/`. The name of a figure gives the question set that the file contains.
    """

    name = "seed"
    title = "SEED-Bench"
    splits = ("all", "image", "video")
    max_new_tokens = 128
    headline = "accuracy"
    caveats = (
        "Two question sets are called SEED-Bench: 19,242 questions until 2023-11, 17,990 since. The second "
        "gives 1.2 to 1.5 points more for all questions; compare only within one set, or the images.",
        "SEED-Bench's leaderboard ranks the likelihoods of the options; LLaVA-1.5 generates a letter.",
    )

    def items(self, files: Path, *, split: str, cache: Path) -> Sequence[Item]:
        """Returns the questions in official order."""
        found = OfficialFiles(files, split=split, splits=self.splits)
        path = found.find("SEED-Bench.json")
        value = found.json(path)
        if (
            path is not None
            and value is not None
            and found.sound(path, "", value, {"questions": list, "question_type": dict})
        ):
            types = {number: name for name, number in value["question_type"].items() if type(number) is int}
            rows = found.records(path, value["questions"], _SPEC, at="questions")
            self._check(found, path, rows, types)
        else:
            rows, types = [], {}
        counts = Counter(row["data_type"] for row in rows)
        questions = QUESTION_SETS.get(
            (counts["image"], counts["video"]), f"unknown question set ({len(rows):,} questions)"
        )
        rows = [row for row in rows if split in ("all", row["data_type"])]
        images = self._images(found, rows)
        found.check()
        seen: Counter[str] = Counter()
        items = []
        for row, image in zip(rows, images, strict=True):
            id_ = str(row["question_id"])
            seen[id_] += 1
            options = [row[f"choice_{letter}"] for letter in "abcd"]
            items.append(
                Item(
                    id=id_ if seen[id_] == 1 else f"{id_}#{seen[id_]}",
                    prompt=f"{row['question']}\n{lettered(options)}\n{ASK_LETTER}",
                    images=(image,),
                    gold=row["answer"],
                    cluster=str(row["data_id"]),
                    groups={
                        "questions": questions,
                        "data": row["data_type"],
                        "dimension": types[row["question_type_id"]],
                    },
                    columns={"question_id": id_},
                )
            )
        return items

    def verdict(self, item: Item, answer: str) -> Verdict:
        """Returns whether the answer is the letter."""
        letter = lenient_letter(answer, LETTERS)
        return Verdict(
            parsed=answer if answer in tuple(LETTERS) else None,
            score=float(answer == item.gold),
            lenient=float(letter == item.gold),
        )

    def figures(self, items: Sequence[Item], verdicts: Sequence[Verdict]) -> dict[str, Figure]:
        """Returns the accuracy of all questions, of images, of videos and of each dimension."""
        letters = [{item.gold: 1.0} for item in items]
        strict, lenient = [v.score or 0.0 for v in verdicts], [v.lenient or 0.0 for v in verdicts]
        kinds = ("questions", "data", "dimension")
        out = group_means("accuracy", items, strict, kinds=kinds, constants=letters)
        return out | group_means("lenient", items, lenient, constants=letters)

    def upload(self, items: Sequence[Item], answers: Mapping[str, str]) -> Mapping[str, bytes]:
        """Returns the file for the leaderboard: one line {"question_id", "prediction"} for each question."""
        raise_all(upload_problems("--upload", [item.id for item in items], answers))
        lines = (
            json.dumps({"question_id": item.columns["question_id"], "prediction": answers[item.id]})
            for item in items
        )
        return {"seed.jsonl": "".join(line + "\n" for line in lines).encode()}

    def _check(
        self, found: OfficialFiles, path: Path, rows: Sequence[Mapping[str, Any]], types: Mapping[int, str]
    ) -> None:
        """Notes unknown letters, kinds of data and dimensions, and ids that occur twice."""
        allowed = {
            "answer": tuple(LETTERS),
            "data_type": ("image", "video"),
            "question_type_id": tuple(types),
        }
        for i, row in enumerate(rows):
            for key, known in allowed.items():
                if row[key] not in known:
                    expected = f"one of {', '.join(map(str, known))}"
                    found.note(
                        OFFICIAL_RECORD,
                        path,
                        f"questions[{i}]",
                        got=f"`{key}`: {row[key]!r}",
                        expected=expected,
                    )
        for id_, times in Counter(str(row["question_id"]) for row in rows).items():
            if times > (2 if id_ == TWICE else 1):
                found.note(OFFICIAL_DUPLICATE, path, got=f"question_id `{id_}` {times} times")

    def _images(self, found: OfficialFiles, rows: Sequence[Mapping[str, Any]]) -> list[str]:
        """Returns the image of each question; notes those that are missing."""
        names = {"image": [], "video": []}
        for row in rows:
            frame = f"{row['question_type_id']}_{row['question_id']}.png"
            names.get(row["data_type"], []).append(
                str(row["data_id"]) if row["data_type"] == "image" else frame
            )
        folders = {"image": "SEED-Bench-image", "video": "SEED-Bench-video-image"}
        paths = {
            data: iter(found.images(found.find_folder(folders[data]), several))
            for data, several in names.items()
            if several
        }
        return [next(paths[row["data_type"]]) for row in rows if row["data_type"] in paths]
