"""Finished run folders made by hand: answers drawn at random, and the results that the library's own scorer gives them."""

from __future__ import annotations

import base64
import json
import random
from dataclasses import asdict
from pathlib import Path

from PIL import Image

from lmmkit.evaluate.answers.outcome import outcome_of
from lmmkit.evaluate.answers.schema import Answer, data_sha, prompt_sha
from lmmkit.evaluate.benchmarks.benchmark import Item
from lmmkit.evaluate.questions.questions_task import QuestionScorer
from lmmkit.recipe import dump, read_text
from tests.conftest import DIRECT, PLAIN

KINDS = ("colour", "count", "shape")
ANSWERS = {
    "colour": ("red", "green", "blue"),
    "count": ("one", "two", "three"),
    "shape": ("cross", "bar", "square"),
}
CONTROLS = ("blank", "swapped")
STAGES = ("pretrain", "finetune")


def draw_images(folder: Path, scenes: int, *, size: tuple[int, int] = (40, 30)) -> list[Path]:
    """Writes one small image for each scene."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = [folder / f"{i:04d}.png" for i in range(scenes)]
    for i, path in enumerate(paths):
        image = Image.new("RGB", size, (i * 37 % 256, i * 91 % 256, i * 53 % 256))
        image.paste((255, 255, 255), (i % 20, i % 10, i % 20 + 10, i % 10 + 10))
        image.save(path)
    return paths


def items_on(images: list[Path], *, seed: int = 1) -> list[Item]:
    """Returns three questions about each image, one of each kind."""
    rng = random.Random(seed)
    return [
        Item(id=f"heldout:{i:04d}/{kind}", prompt=f"Which {kind} is in scene {i}?", images=(str(image),),
             gold=[rng.choice(ANSWERS[kind])], cluster=f"scene {i}", groups={"type": kind})
        for i, image in enumerate(images)
        for kind in KINDS
    ]  # fmt: skip


def write_run(
    folder: Path, items: list[Item], *, skill: float, seed: int, steps: int = 40, direct: bool = False, task: str = "answers"
) -> Path:  # fmt: skip
    """Writes a finished run whose answers are right with probability `skill` on the own image, else by guess."""
    folder.mkdir(parents=True)
    recipe = read_text(DIRECT if direct else PLAIN, root=".", overrides=[f"seed={seed}"])
    (folder / "recipe.resolved.yaml").write_text(dump(recipe))
    (folder / "plan.txt").write_text("plan of a test\n")
    session = {
        "version": "0.1.0", "command": f"lmmkit train a.yaml --out {folder.name}", "machine": "test", "device": "cpu",
        "threads": 1, "processes": 1, "started": "2026-11-01T10:00:00+00:00", "ended": "2026-11-01T10:05:00+00:00",
        "cpu_seconds": 100.0 + seed,
    }  # fmt: skip
    data = {
        name: {"count": 9, "records": f"{name} 1", "images": "9 files"} for name in ("captions", "questions")
    }
    write(folder / "run.json", {
        "format": 1, "recipe": "a" * 64, "plans": {}, "data": data, "plugins": {}, "root": str(folder), "sessions": [session],
        "versions": {"python": "3.11", "torch": "2.14"}, "parameters": 1000 + direct, "trained": {"pretrain": 1000},
    })  # fmt: skip
    for stage in STAGES:
        (folder / "model" / stage).mkdir(parents=True)
        (folder / "model" / stage / "config.json").write_text("{}")
    write_lines(folder / "metrics.jsonl", [_step(i, steps, direct, seed) for i in range(steps)])
    write_lines(
        folder / "anomalies.jsonl", [{"step": 5, "stage": "pretrain", "kind": "spike", "of": ["grad_norm"]}]
    )
    answers = draw_answers(items, skill=skill, seed=seed, task=task)
    store_answers(folder, items, answers, task=task)
    if direct:
        write_puzzles(folder, items)
    return folder


def _step(i: int, steps: int, direct: bool, seed: int) -> dict:
    rng = random.Random(1000 * seed + i)
    stage, loss = STAGES[i >= steps // 2], 5.0 / (1 + i) + rng.random() / 10
    line = {
        "step": i + 1, "stage": stage, "loss": loss, "terms/next_token": loss, "chance/next_token": 6.5, "lr": 1e-3,
        "grad_norm": 1 + rng.random(), "tokens": 100 * (1 + direct), "tokens_per_second": 900.0 + i, "seconds": 0.5 * (1 + direct),
    }  # fmt: skip
    if direct:
        line |= {"terms/guided_loss": 0.4, "terms/guided_loss/mass": 0.6, "chance/guided_loss/mass": 0.25}
    return line


def draw_answers(items: list[Item], *, skill: float, seed: int, task: str = "answers") -> list[Answer]:
    """Returns an answer to each item under each condition."""
    rng, whole, found = random.Random(seed), data_sha(items), []
    scorer = QuestionScorer(match="exact")
    for condition in ("own", *CONTROLS):
        for row, item in enumerate(items):
            kind = item.groups["type"]
            right = condition == "own" and rng.random() < skill
            text = item.gold[0] if right else rng.choice(ANSWERS[kind])
            other = items[(row + len(KINDS)) % len(items)].images
            images = {"own": item.images, "blank": item.images, "swapped": other}[condition]
            answer = Answer(
                task=task, split="heldout", data=whole[:16], id=item.id, row=row, condition=condition, question=item.prompt,
                images=images, cluster=item.cluster, groups=item.groups, prompt_sha=prompt_sha(item.prompt, item.images),
                raw=text, gold=item.gold, majority=ANSWERS[kind][0], n_new_tokens=1, hit_max_tokens=False,
            )  # fmt: skip
            found.append(answer.judged(scorer.verdict(item, text)))
    return found


def store_answers(folder: Path, items: list[Item], answers: list[Answer], *, task: str = "answers") -> None:
    """Writes answers with their attention, and the figures that they come to into results.json."""
    at = folder / "answers" / "finetune" / task
    at.mkdir(parents=True, exist_ok=True)
    (at / "answers.jsonl").write_text("".join(answer.as_line() for answer in answers))
    write(at / "answers.json", {
        "format": 1, "task": task, "benchmark": "questions", "split": "heldout", "data_sha256": data_sha(items),
        "items": len(items), "prompt": {"template": ["plain"], "image_fit": ["pad"], "system": [""]},
    })  # fmt: skip
    scorer = QuestionScorer(
        match="exact", guesses={item.id: ANSWERS[item.groups["type"]][0] for item in items}
    )
    outcome = outcome_of(items, scorer, CONTROLS, {answer.key: answer for answer in answers})
    looks = [_look(item.id, i, len(items)) for i, item in enumerate(items[:30])]
    write_lines(at / "attention.jsonl", looks)
    mass, even = (sum(look[key] for look in looks) / len(looks) for key in ("mass", "even"))
    attention = {"value": mass, "low": None, "high": None, "chance": even, "n": len(looks)}
    figures = {name: asdict(figure) for name, figure in outcome.figures.items()}
    write(
        folder / "results.json",
        {task: {**figures, "image_attention": attention, "seconds": 1.0, **outcome.facts()}},
    )


def _look(id: str, i: int, n: int) -> dict:
    maps = bytes([255, i % 250, 40, 0])
    return {
        "id": id, "mass": 0.2 + 0.4 * i / n, "even": 0.25, "grid": [2, 2], "peak": 0.125, "map": base64.b64encode(maps).decode()
    }  # fmt: skip


def write_puzzles(folder: Path, items: list[Item]) -> None:
    """Writes puzzles of images and of words, every third of them wrong."""
    tiles, words = [], []
    for i, item in enumerate(items):
        right, gold = i % 3 > 0, list(range(4))
        common = {"id": item.id, "images": list(item.images), "right": right, "chance": 0.2}
        tiles.append({
            **common, "shuffled": [3, 0, 1, 2], "predicted": gold if right else [1, 0, 2, 3], "gold": gold,
            "p_predicted": 0.9, "p_gold": 0.9 if right else 0.1,
        })  # fmt: skip
        sentence = ["a", "red", "cross"]
        words.append({
            **common, "shuffled": ["red", "cross", "a"], "predicted": sentence if right else ["a", "cross", "red"],
            "gold": sentence, "p_predicted": None, "p_gold": None,
        })  # fmt: skip
    for stage, task, name, grid, rows in (
        ("finetune", "terms", "image_order", 2, tiles), ("pretrain", "restore", "text_order", 0, words),
    ):  # fmt: skip
        at = folder / "answers" / stage / task
        at.mkdir(parents=True)
        found = {
            "n": len(rows),
            "right": sum(row["right"] for row in rows),
            "chance": 0.2,
            "grid": grid,
            "puzzles": rows,
        }
        write(
            at / "puzzles.json",
            {"format": 1, "task": task, "stage": stage, "model": "x", "instances": {name: found}},
        )


def make_pair(folder: Path, *, scenes: int = 40) -> list[Path]:
    """Writes two runs, `plain` and `direct`, on the same questions; the second one is better."""
    items = items_on(draw_images(folder / "images", scenes))
    return [
        write_run(folder / "plain", items, skill=0.3, seed=1),
        write_run(folder / "direct", items, skill=0.9, seed=2, direct=True),
    ]


def change_answer(run: Path, n: int, **values: object) -> None:
    """Changes fields of one line of a run's answers, without a change of results.json."""
    file = run / "answers" / "finetune" / "answers" / "answers.jsonl"
    lines = [json.loads(line) for line in file.read_text().splitlines()]
    lines[n] |= values
    write_lines(file, lines)


def write(path: Path, value: dict) -> None:
    """Writes one JSON object."""
    path.write_text(json.dumps(value))


def write_lines(path: Path, lines: list[dict]) -> None:
    """Writes one JSON object a line."""
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
