"""What `scenes.json` and the README of a biased world say: parameters, priors, and scores without the image."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from typing import Any

from lmmkit.majority import Majority
from lmmkit.scenes.priors import Key, PriorQuestion
from lmmkit.scenes.world import World

FORMAT = 1


def summary(
    world: World, usual: Mapping[Key, str], asked: Mapping[str, Sequence[PriorQuestion]], files: Mapping[str, str]
) -> dict[str, Any]:  # fmt: skip
    """Returns the content of `scenes.json`.

    Args:
        world: the parameters.
        usual: the usual answer of each key.
        asked: the questions about images, by file; those of training first.
        files: the SHA-256 of each file.
    """
    training = next(iter(asked.values()))
    majority = Majority((question.text, question.kind, question.answer) for question in training)
    return {
        "format": FORMAT,
        "parameters": asdict(world) | {"kinds": list(world.kinds), "text_records": world.texts},
        "usual": {kind: {s: usual[k, s] for k, s in usual if k == kind} for kind in world.kinds},
        "questions": {
            name: _scores(world.kinds, questions, usual, majority) for name, questions in asked.items()
        },
        "sha256": dict(files),
    }


def _scores(
    kinds: Sequence[str], questions: Sequence[PriorQuestion], usual: Mapping[Key, str], majority: Majority
) -> dict[str, Any]:
    """Returns the number of questions, and the accuracy of two readers of the text alone: of one that knows the priors,
    and of one that knows the training answers; for all questions, and by kind."""

    def of(some: Sequence[PriorQuestion]) -> dict[str, Any]:
        return {
            "number": len(some),
            "prior": _share(question.answer == usual[question.key] for question in some),
            "majority": _share(q.answer == majority.answer(q.text, q.kind) for q in some),
        }

    return of(questions) | {"kinds": {kind: of([q for q in questions if q.kind == kind]) for kind in kinds}}


def _share(values: Iterable[bool]) -> float | None:
    found = list(values)
    return sum(found) / len(found) if found else None


def world_readme(found: Mapping[str, Any]) -> str:
    """Returns the README.md of the data set, from what `scenes.json` holds."""
    world, questions = found["parameters"], found["questions"]
    names = list(questions)
    rows = "\n".join(
        f"| {kind} | " + " | ".join(_cell(questions[name]["kinds"][kind]) for name in names) + " |"
        for kind in world["kinds"]
    )
    total = " | ".join(_cell(questions[name]) for name in names)
    priors = "\n".join(
        f"| {kind} | {', '.join(f'{slot}: {answer}' for slot, answer in found['usual'][kind].items())} |"
        for kind in world["kinds"]
    )
    training, heldout, balanced = (questions[name] for name in names)
    return f"""# A biased world

Drawn images with captions and questions, in the files and the JSON that LLaVA reads. Each question has one usual
answer, so a model that knows the questions can answer most of them without looking at the image.
Written by `lmmkit data make-scenes --bias {world["bias"]:g}` with seed {world["seed"]}; the same arguments give the
same bytes. `scenes.json` has all parameters, the figures below, and the SHA-256 of each JSON file.

| file | content |
|---|---|
| `images/train/`, `images/heldout/` | {world["count"]} and {world["heldout"]} images of one to three objects |
| `images/empty/`, `empty.png` | landscapes without objects; the last one is a control image for evaluation |
| `pretrain.json` | one caption for each training image and for empty landscapes |
| `text.json` | {world["text_records"]} conversations without an image: half of them with the usual answers at the \
same bias, the others with questions and captions about a description |
| `finetune.json` | conversations on training images: {training["number"]} questions |
| `heldout.json` | {heldout["number"]} questions on held-out images, one a record, with the bias of training |
| `heldout_balanced.json` | {balanced["number"]} questions on the same images; all answers to a question are about \
equally frequent |
| `heldout_captions.json` | one caption for each held-out image and for empty landscapes |
| `tokenizer.model` | a sentencepiece model of the training texts |

Image paths are relative to this folder. No held-out image shows the same objects in the same places as a training
image, and no description in `text.json` does. Captions and images have no bias.

A held-out record has `type`, which is the kind of its question and `usual` or `other`: whether its answer is the
usual one. `prior` has the second word alone, `scene` the scene. `box` is where the object is that the question is
about, left, top, right and bottom as shares of the image padded to a square; questions about no object have none.

## Questions, and the accuracy of a reader of the priors alone

| kind | {" | ".join(f"`{name}`" for name in names)} |
|---|{"---|" * len(names)}
{rows}
| all | {total} |

On rows with `prior` = `other` this reader scores 0. The most common training answer to the same question scores
{_percent(heldout["majority"])} on `heldout.json` and {_percent(balanced["majority"])} on `heldout_balanced.json`.

## Usual answers

| kind | usual answers |
|---|---|
{priors}
"""


def _cell(scores: Mapping[str, Any]) -> str:
    return f"{scores['number']}, {_percent(scores['prior'])}"


def _percent(share: float | None) -> str:
    return "-" if share is None else f"{share:.1%}"
