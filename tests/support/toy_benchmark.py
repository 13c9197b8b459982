"""A benchmark in one file: lines of {id, question, image, answer, kind}, scored by equal texts."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from lmmkit.evaluate.benchmarks.benchmark import Benchmark, Item, Verdict
from lmmkit.evaluate.questions import answering
from lmmkit.evaluate.questions.asking import AskedQuestion, Reply
from lmmkit.evaluate.stats import mean_with_interval
from lmmkit.evaluate.task import Figure


class Toy(Benchmark):
    """Reads toy.jsonl. In split `server` no answer is public."""

    name = "toy"
    title = "Toy"
    splits = ("test", "server")
    max_new_tokens = 5
    headline = "accuracy"
    caveats = ("It is a toy.",)
    normaliser = "lower 1"

    def items(self, files: Path, *, split: str, cache: Path) -> Sequence[Item]:
        """Returns one item a line."""
        lines = map(json.loads, (files / "toy.jsonl").read_text().splitlines())
        return [
            Item(
                id=line["id"], prompt=line["question"], images=(str(files / line["image"]),) if line["image"] else (),
                gold=line["answer"] if split == "test" else None, cluster=line["image"] or line["id"],
                groups={"kind": line["kind"]},
            )
            for line in lines
        ]  # fmt: skip

    def verdict(self, item: Item, answer: str) -> Verdict:
        """Compares equal texts; an empty answer has no parsed form."""
        score = None if item.gold is None else float(answer == item.gold)
        return Verdict(parsed=answer.lower() or None, score=score)

    def figures(self, items: Sequence[Item], verdicts: Sequence[Verdict]) -> dict[str, Figure]:
        """Returns the accuracy."""
        if self.status(items) != "scored":
            return {}
        scores = [verdict.score or 0.0 for verdict in verdicts]
        return {"accuracy": mean_with_interval(scores, [item.cluster for item in items], chance=0.25)}

    def upload(self, items: Sequence[Item], answers: Mapping[str, str]) -> Mapping[str, bytes]:
        """Returns one file with all answers."""
        if self.status(items) == "scored":
            return {}
        return {"toy.json": json.dumps({item.id: answers[item.id].lower() for item in items}).encode()}


def write_toy(folder: Path, images: Sequence[Path], each: int = 3) -> list[dict]:
    """Writes a toy benchmark about links to these images, with one question about none."""
    folder.mkdir(parents=True)
    lines = []
    for i, image in enumerate(images):
        (folder / f"{i}{image.suffix}").write_bytes(image.read_bytes())
        lines += [
            {"id": f"q{i}-{j}", "question": f"what is number {j}?", "image": f"{i}{image.suffix}",
             "answer": "ab"[j % 2], "kind": f"k{j}"}
            for j in range(each)
        ]  # fmt: skip
    lines.append({"id": "text", "question": "what?", "image": None, "answer": "a", "kind": "k0"})
    (folder / "toy.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return lines


def answering_with(monkeypatch, answer: Callable[[AskedQuestion], str], asked: list | None = None) -> None:
    """Lets `answer` answer in place of a model, two questions a batch; collects the keys that are asked."""

    def ask(chat_model, questions, *, max_new_tokens, on_replies, done=(), share=(0, 1), title=""):
        todo = [question for question in questions if question.key not in done][share[0] :: share[1]]
        for first in range(0, len(todo), 2):
            batch = todo[first : first + 2]
            if asked is not None:
                asked.extend(question.key for question in batch)
            on_replies([(q, Reply(text=answer(q), ids=(7, 8), hit_max_tokens=False)) for q in batch])

    monkeypatch.setattr(answering, "ask", ask)
