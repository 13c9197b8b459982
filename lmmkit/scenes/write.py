"""Writes the data set: images, LLaVA JSON, tokenizer and README."""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lmmkit.errors import raise_all
from lmmkit.scenes.captions import INSTRUCTIONS, caption
from lmmkit.scenes.folder import new_folder, save_image, target_problems, write_text
from lmmkit.scenes.questions import Asker, Question
from lmmkit.scenes.records import image_record, turns, with_marker
from lmmkit.scenes.report import SceneReport, majority_accuracy, readme, type_shares, yes_no_share
from lmmkit.scenes.scene import SPLITS, Scene, make_scene
from lmmkit.scenes.tokenizer import VOCABULARY, train_tokenizer

QUESTIONS = (4, 5, 6)
HELDOUT_QUESTIONS = 3
JSON_FILES = ("pretrain.json", "finetune.json", "heldout.json", "heldout_captions.json")

_Json = dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class DescribedScene:
    """Holds a scene with its instruction, caption and questions."""

    scene: Scene
    instruction: str  # with its <image> marker
    caption: str
    questions: tuple[Question, ...]
    marker_first: tuple[bool, ...]  # for each question: is <image> before it?


def write_scenes(
    directory: Path,
    *,
    count: int = 6000,
    heldout: int = 500,
    seed: int = 0,
    progress: Callable[[int, int], None] | None = None,
) -> SceneReport:
    """Writes a data set of `count` training and `heldout` held-out scenes into `directory`.

    Equal arguments write equal bytes. `progress` is called with the number of images written and the
    total. Raises `UserError` if a count is too small or `directory` is not empty. If it fails later, nothing is
    left in `directory`.
    """
    directory = Path(directory)
    raise_all(target_problems(directory, count, heldout))
    numbers = {"train": count, "heldout": heldout}
    described = {split: describe_scenes(seed, split, numbers[split]) for split in SPLITS}
    with new_folder(directory, SPLITS):
        return _write(directory, seed, described, progress or (lambda done, total: None))


def _write(
    directory: Path,
    seed: int,
    described: dict[str, list[DescribedScene]],
    progress: Callable[[int, int], None],
) -> SceneReport:
    scenes = [item.scene for split in SPLITS for item in described[split]]
    for done, scene in enumerate(scenes, start=1):
        save_image(scene, directory)
        progress(done, len(scenes))

    captions = {split: [_caption_record(item) for item in described[split]] for split in SPLITS}
    records = {
        "pretrain.json": captions["train"],
        "finetune.json": [_conversation(item) for item in described["train"]],
        "heldout.json": [record for item in described["heldout"] for record in _single_questions(item)],
        "heldout_captions.json": captions["heldout"],
    }
    for name in JSON_FILES:
        write_text(directory / name, json.dumps(records[name], indent=1) + "\n")
    (directory / "tokenizer.model").write_bytes(train_tokenizer(_texts(described["train"])))
    report = _report(directory, seed, described)
    write_text(directory / "README.md", readme(report))
    return report


def describe_scenes(seed: int, split: str, number: int) -> list[DescribedScene]:
    """Returns the first `number` scenes of `split` with captions and questions."""
    asker = Asker()
    described = []
    for index in range(number):
        scene = make_scene(seed, split, index)
        rng = random.Random(f"lmmkit words/{seed}/{scene.id}")
        turns = rng.choice(QUESTIONS) if split == "train" else HELDOUT_QUESTIONS
        if len(scene.things) == 1:
            turns = min(turns, QUESTIONS[0])  # more questions would repeat facts
        questions = tuple(asker.ask(scene, turns, rng))
        described.append(
            DescribedScene(
                scene=scene,
                instruction=with_marker(rng.choice(INSTRUCTIONS), rng.random() < 0.5),
                caption=caption(scene, rng),
                questions=questions,
                marker_first=tuple(rng.random() < 0.5 for _ in questions),
            )
        )
    return described


def _caption_record(item: DescribedScene) -> _Json:
    return image_record(item.scene, [(item.instruction, item.caption)])


def _conversation(item: DescribedScene) -> _Json:
    first, *others = item.questions
    asked = [with_marker(first.text, item.marker_first[0]), *(question.text for question in others)]
    return image_record(item.scene, zip(asked, (question.answer for question in item.questions), strict=True))


def _single_questions(item: DescribedScene) -> list[_Json]:
    return [
        {
            "id": f"{item.scene.id}/{number}",
            "image": item.scene.image,
            "conversations": turns([(with_marker(question.text, first), question.answer)]),
            "type": question.type,
            "scene": item.scene.id,
        }
        for number, (question, first) in enumerate(zip(item.questions, item.marker_first, strict=True))
    ]


def _texts(described: Sequence[DescribedScene]) -> list[str]:
    """Returns the texts to train the tokenizer on: all texts of the training records, without markers."""
    texts: list[str] = [*INSTRUCTIONS]
    for item in described:
        texts.append(item.caption)
        for question in item.questions:
            texts += [question.text, question.answer]
    return texts


def _report(directory: Path, seed: int, described: dict[str, list[DescribedScene]]) -> SceneReport:
    questions = {split: [q for item in described[split] for q in item.questions] for split in SPLITS}
    accuracy = majority_accuracy(questions["train"], questions["heldout"])
    names = (*JSON_FILES, "tokenizer.model", "README.md")
    return SceneReport(
        directory=directory,
        seed=seed,
        scenes=len(described["train"]),
        heldout_scenes=len(described["heldout"]),
        questions=len(questions["train"]),
        heldout_questions=len(questions["heldout"]),
        type_shares=type_shares(questions["train"]),
        heldout_type_shares=type_shares(questions["heldout"]),
        yes_no_share=yes_no_share(questions["train"]),
        heldout_yes_no_share=yes_no_share(questions["heldout"]),
        majority=accuracy["all"],
        majority_by_type={name: share for name, share in accuracy.items() if name != "all"},
        vocabulary=VOCABULARY,
        files=tuple(directory / name for name in names),
    )
