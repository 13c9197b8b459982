"""Writes a biased world: questions with language priors that mislead, on images that have no bias."""

from __future__ import annotations

import hashlib
import json
import random
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from lmmkit.errors import raise_all
from lmmkit.scenes.biased_report import summary, world_readme
from lmmkit.scenes.captions import INSTRUCTIONS, caption, empty_caption
from lmmkit.scenes.draw import extent
from lmmkit.scenes.folder import new_folder, save_image, target_problems, write_text
from lmmkit.scenes.priors import KINDS, Key, PriorAsker, PriorQuestion, usual_answers
from lmmkit.scenes.records import image_record, with_marker
from lmmkit.scenes.scene import SPLITS, Scene, Thing, make_scene
from lmmkit.scenes.texts import text_records
from lmmkit.scenes.tokenizer import train_tokenizer
from lmmkit.scenes.world import World

EMPTY = "empty"  # the split of landscapes without things
EMPTY_EVERY = 16  # scenes for one empty landscape
HELDOUT_QUESTIONS = 4  # about one image, at most, in each held-out file

_Json = dict[str, Any]
_Asked = list[tuple[Scene, list[PriorQuestion]]]


def write_biased_scenes(
    directory: Path, world: World, *, progress: Callable[[int, int], None] = lambda done, total: None
) -> _Json:  # fmt: skip
    """Writes the data set of a biased world into `directory`, and returns the content of its `scenes.json`.

    Equal worlds write equal bytes. `progress` is called with the number of images written and the total. Raises
    `UserError` for wrong parameters, or if `directory` is not empty. If it fails later, nothing is left in it.
    """
    directory = Path(directory)
    raise_all([*world.problems(), *target_problems(directory, world.count, world.heldout)])
    world = replace(world, kinds=tuple(kind for kind in KINDS if kind in world.kinds))
    with new_folder(directory, (*SPLITS, EMPTY)):
        return _write(directory, world, progress)


def _write(directory: Path, world: World, progress: Callable[[int, int], None]) -> _Json:
    train, heldout = (
        [make_scene(world.seed, split, i) for i in range(n)]
        for split, n in zip(SPLITS, (world.count, world.heldout), strict=True)
    )
    empty = empty_scenes(world.seed, "train", world.count, first=0)
    held_empty = empty_scenes(world.seed, "heldout", world.heldout, first=len(empty))
    drawn = [*train, *heldout, *empty, *held_empty]
    for done, scene in enumerate(drawn, start=1):
        save_image(scene, directory)
        progress(done, len(drawn))
    (directory / "empty.png").write_bytes((directory / held_empty[0].image).read_bytes())

    usual = usual_answers(world.seed, world.kinds)
    asked = {
        "finetune": _asked("finetune", train, world, PriorAsker(usual, world.bias)),
        "heldout": _asked("heldout", heldout, world, PriorAsker(usual, world.bias)),
        "heldout_balanced": _asked("heldout_balanced", heldout, world, PriorAsker(usual, None)),
    }
    records = {
        "pretrain": _caption_records([*train, *empty], world.seed),
        "text": text_records(
            usual, bias=world.bias, kinds=world.kinds, number=world.texts, first=world.count, seed=world.seed
        ),
        "finetune": [_conversation(*item, world.seed) for item in asked["finetune"] if item[1]],
        "heldout": _single_questions(asked["heldout"], usual, world.seed),
        "heldout_balanced": _single_questions(asked["heldout_balanced"], usual, world.seed),
        "heldout_captions": _caption_records([*heldout, *held_empty], world.seed),
    }
    (directory / "tokenizer.model").write_bytes(
        train_tokenizer(_texts(records[name] for name in ("pretrain", "text", "finetune")))
    )
    contents = {f"{name}.json": json.dumps(found, indent=1) + "\n" for name, found in records.items()}
    found = summary(
        world, usual, {f"{name}.json": [q for _, several in items for q in several] for name, items in asked.items()},
        {name: hashlib.sha256(text.encode()).hexdigest() for name, text in contents.items()},
    )  # fmt: skip
    contents |= {"scenes.json": json.dumps(found, indent=1) + "\n", "README.md": world_readme(found)}
    for name, text in contents.items():
        write_text(directory / name, text)
    return found


def empty_scenes(seed: int, split: str, count: int, *, first: int) -> list[Scene]:
    """Returns landscapes without things: one for `EMPTY_EVERY` scenes of a split, numbered from `first`."""
    landscapes = (make_scene(seed, split, count + i) for i in range(max(1, count // EMPTY_EVERY)))
    return [
        replace(scene, split=EMPTY, index=number, suffix="png", things=())
        for number, scene in enumerate(landscapes, first)
    ]


def box_of(thing: Thing, scene: Scene) -> list[float]:
    """Returns left, top, right and bottom of a thing, as shares of the image padded to a square."""
    side = max(scene.width, scene.height)
    left, top, right, bottom = extent(thing, scene.width, scene.height)
    x, y = ((side - length) // 2 for length in (scene.width, scene.height))
    return [round(min(1.0, max(0.0, at / side)), 4) for at in (left + x, top + y, right + x, bottom + y)]


def _asked(name: str, scenes: Sequence[Scene], world: World, asker: PriorAsker) -> _Asked:
    """Returns the questions about each scene, for the file of this name."""
    most = world.questions if name == "finetune" else HELDOUT_QUESTIONS
    return [(scene, asker.ask(scene, world.kinds, most, _rng(name, scene, world.seed))) for scene in scenes]


def _rng(purpose: str, scene: Scene, seed: int) -> random.Random:
    return random.Random(f"lmmkit biased {purpose}/{seed}/{scene.id}")


def _caption_records(scenes: Iterable[Scene], seed: int) -> list[_Json]:
    records = []
    for scene in scenes:
        rng = _rng("captions", scene, seed)
        instruction = with_marker(rng.choice(INSTRUCTIONS), rng.random() < 0.5)
        text = caption(scene, rng) if scene.things else empty_caption(scene, rng)
        records.append(image_record(scene, [(instruction, text)]))
    return records


def _conversation(scene: Scene, questions: Sequence[PriorQuestion], seed: int) -> _Json:
    first = _rng("marker", scene, seed).random() < 0.5
    texts = [with_marker(questions[0].text, first), *(question.text for question in questions[1:])]
    record = image_record(scene, zip(texts, (question.answer for question in questions), strict=True))
    return record | (_box(questions[0], scene) if len(questions) == 1 else {})


def _single_questions(asked: _Asked, usual: Mapping[Key, str], seed: int) -> list[_Json]:
    records = []
    for scene, questions in asked:
        for number, question in enumerate(questions):
            prior = "usual" if question.answer == usual[question.key] else "other"
            marks = {"id": f"{scene.id}/{number}", "type": f"{question.kind} {prior}", "prior": prior}
            records.append(_conversation(scene, [question], seed) | marks | {"scene": scene.id})
    return records


def _box(question: PriorQuestion, scene: Scene) -> _Json:
    return {} if question.thing is None else {"box": box_of(question.thing, scene)}


def _texts(files: Iterable[Sequence[_Json]]) -> list[str]:
    """Returns the texts to train the tokenizer on, without markers."""
    turns = (turn["value"] for records in files for record in records for turn in record["conversations"])
    return [*INSTRUCTIONS, *(text.replace("<image>", "").strip() for text in turns)]
