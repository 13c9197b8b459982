"""What a model reads of one item of each benchmark, byte for byte, with the template of LLaVA-1.5."""

from __future__ import annotations

import pytest

import lmmkit
from lmmkit.api.sample import View
from lmmkit.evaluate.questions import benchmark_task
from lmmkit.evaluate.questions.benchmark_task import BenchmarkTask
from lmmkit.recipe import Task

SYSTEM = (
    "A chat between a curious user and an artificial intelligence assistant. The assistant gives helpful, "
    "detailed, and polite answers to the user's questions."
)
SHORT = "Answer the question using a single word or phrase."
LETTER = "Answer with the option's letter from the given choices directly."
PROMPTS = {
    "vqav2": ("42000", f"Is it sunny in 42000?\n{SHORT}"),
    "gqa": ("201", f"What is 201?\n{SHORT}"),
    "vizwiz": ("0", f"What is this, number 0? \nWhen the provided information is insufficient, respond with 'Unanswerable'.\n{SHORT}"),
    "scienceqa": ("5", f"Context: Look.\nWhich is 5?\nA. x\nB. y\nC. z\n{LETTER}"),
    "textvqa": ("34602", f'What is the brand 0?\nReference OCR token: NOKIA, a"b,\n{SHORT}'),
    "pope": ("1", f"Is there a dog in the image?\n{SHORT}"),
    "seed": ("101669", f"How many, 0?\nA. 1\nB. 2\nC. 3\nD. 4\n{LETTER}"),
    "mme": ("scene/images/0001.jpg#2", f"Is this a dog?\n{SHORT}"),
    "llava-wild": ("0", "Where is 0?"),
    "mm-vet": ("v1_0", "x in 0?"),
    "mmmu": ("validation_Art_1", f"Who painted <image 1> of Art?\n(A) Giotto\n(B) Vermeer\n\n{LETTER}"),
    "mmbench": ("1000007", f"Look.\nWhat is 7?\nA. down\nB. left\nC. right\nD. up\n{LETTER}"),
}  # fmt: skip
OTHERS = [
    ("scienceqa", "4", f"Which is 4?\nA. x\nB. y\n{LETTER}"),
    ("textvqa", "34604", f"What is the brand 2?\nReference OCR token: \n{SHORT}"),
    ("mmmu", "validation_Math_1", f"Who painted <image 1> of Math?\n{SHORT}"),
    ("mmbench", "241", f"What is 241?\nA. red\nB. blue\n{LETTER}"),
]


@pytest.fixture(scope="module")
def model(answering):
    return lmmkit.load(answering, device="cpu")


@pytest.mark.parametrize(("name", "id", "prompt"), [*((n, *p) for n, p in PROMPTS.items()), *OTHERS])
def test_the_string_is_that_of_llava(model, official, monkeypatch, name, id, prompt):
    found = {}
    monkeypatch.setattr(
        benchmark_task, "answer_questions", lambda model, asked, **more: found.update(asked=asked) or _Nothing
    )
    BenchmarkTask(name, Task(kind=name, files=str(official))).run(model, ())
    sample = next(sample for sample in found["asked"].samples if sample.key == id)
    ids, parts = [], []
    for span in model.views.prompt(View(sample=sample)):
        if span.kind == "image":
            parts += [model.views.tokenizer.decode(ids), "<image>"]
            ids = []
        else:
            ids += span.ids
    parts.append(model.views.tokenizer.decode(ids))
    shown = "" if (name, id) == ("scienceqa", "4") else "<image>\n"
    assert "".join(parts) == f"{SYSTEM} USER: {shown}{prompt} ASSISTANT:"


class _Nothing:
    figures = {}  # noqa: RUF012
